"""Name what image files show, with a trained net."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from shared_core.data.images import BadImageError, printable, read_image

from corsd.frame import run_net
from corsd.trained import Trained


def predict(
    trained: Trained, paths: Sequence[str], device: torch.device, batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """{"path", "class", "probability"} for each file in order, or {"path", "error"} for a broken one."""
    net = trained.net.to(device).eval()
    # Grey files stay as they are: through RGB and back they would lose a level.
    mode = "L" if trained.preprocess.channels == 1 else "RGB"
    for begin in range(0, len(paths), batch_size):
        answers: list[dict[str, Any]] = []
        images = []
        for path in paths[begin : begin + batch_size]:
            try:
                images.append(trained.preprocess.fit(read_image(path, mode)))
                answers.append({"path": printable(path)})
            except BadImageError as error:
                answers.append({"path": printable(path), "error": str(error)})
        if images:
            with torch.no_grad():
                logits = run_net(net, trained.preprocess(torch.stack(images).to(device)))
                probabilities = logits.float().softmax(1)
            best = iter(zip(*(v.tolist() for v in probabilities.max(1)), strict=True))
            for answer in answers:
                if "error" not in answer:
                    probability, place = next(best)
                    answer |= {"class": trained.class_names[place], "probability": probability}
        yield from answers
