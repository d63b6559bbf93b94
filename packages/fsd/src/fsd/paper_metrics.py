"""The paper's own numbers (arXiv 2405.10988, appendix A), for those who have the weights of CLIP and Inception-v3.

    >>> numbers = paper_metrics("runs/mug", clip="clip-vit-base-patch32", inception="inception_v3.safetensors")
    >>> print(as_text(numbers, PAPER_COLUMNS))

Nothing is downloaded.  Inception-v3 is torchvision's, saved by safetensors.torch.save_file(net.state_dict(), ...); its
weights are not those of the TensorFlow network that FID was defined with, so distances compare only with such that were
measured here.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fsd.metrics import cross_seed_fid, inception_score
from fsd.objects import Finished, finished, groups, squares

PAPER_COLUMNS = {
    "guidance": "guidance",
    "seeds": "seeds",
    "clip_score": "CLIP score",
    "inception_v3_score": "inception score",
    "inception_v3_cross_fid": "CROSS-FID",
}
SIDE = 299


def paper_metrics(
    run: str | os.PathLike[str],
    clip: str | os.PathLike[str] | None = None,
    inception: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One row per prompt and guidance method of a run, from the 24 views of each object.

    clip_score: 100 times the cosine between prompt and view, mean over views and seeds; the paper has ViT-B/32.
    inception_v3_score: exp(mean KL(p(class | view) || p(class))) over all views of all seeds; from 1 to 1000.
    inception_v3_cross_fid: Fréchet distance between the first and the second half of the seeds, of 2048 features and
        without shrinkage, as in the paper; None for one seed.
    `clip` is a folder of transformers' CLIPModel with its processor, `inception` weights of torchvision's
    inception_v3 as safetensors; the numbers of the one that is not given are None.

    Raises ValueError where neither is given, for a file or folder that holds something else, and where the folder holds
    no run.
    """
    if clip is None and inception is None:
        raise ValueError(
            "name at least one: clip, a folder of a CLIPModel, or inception, weights of inception_v3"
        )
    score = load_clip(clip) if clip is not None else None
    net = load_inception(inception) if inception is not None else None
    rows = [_row(objects, score, net) for objects in groups(finished(run)).values()]
    return {"methods": rows, "failed": []}


def load_clip(folder: str | os.PathLike[str]) -> Callable[[str, UInt8[np.ndarray, "n h h 3"]], float]:
    """The function from a prompt and its views to the CLIP score.  Errors as `paper_metrics`."""
    from transformers import AutoProcessor, CLIPModel

    folder = os.path.expanduser(folder)
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no config.json: give a folder of a CLIPModel, as save_pretrained writes"
        )
    try:
        loaded: Any = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        model, report = loaded
        absent = sorted({str(key) for name in ("missing_keys", "mismatched_keys") for key in report[name]})
        if absent:
            # transformers gives these random values and goes on.
            raise ValueError(f"its files lack {', '.join(absent[:4])}, or have other shapes")
        model.eval()
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} is no folder of a CLIPModel and its processor ({error})") from error

    @torch.no_grad()
    def score(prompt: str, views: UInt8[np.ndarray, "n h h 3"]) -> float:
        inputs = processor(
            text=[prompt], images=list(views), return_tensors="pt", padding=True, truncation=True
        )
        out = model(**inputs)
        # Both are of length 1.
        return 100 * float((out.image_embeds @ out.text_embeds.T).mean())

    return score


def load_inception(path: str | os.PathLike[str]) -> nn.Module:
    """torchvision's inception_v3 with the weights of a file.

    Errors as `paper_metrics`.
    """
    from shared_core.fitting_weights import load_weights
    from torchvision.models import inception_v3

    net = inception_v3(weights=None, init_weights=False)
    load_weights(net, path)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def inception_features(
    net: nn.Module, views: UInt8[np.ndarray, "n h h 3"], batch: int = 24
) -> tuple[Float[Tensor, "n 2048"], Float[Tensor, "n 1000"]]:
    """The pooled features and the probabilities of the classes, of pictures enlarged to 299 by 299."""
    images = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 127.5 - 1
    kept: list[Tensor] = []
    hook = net.get_submodule("avgpool").register_forward_hook(
        lambda module, inputs, output: kept.append(output.flatten(1))
    )
    try:
        logits = [
            net(interpolate(some, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False))
            for some in images.split(batch)
        ]
    finally:
        hook.remove()
    return torch.cat(kept), torch.cat(logits).softmax(1)


def _row(
    objects: list[Finished],
    score: Callable[[str, UInt8[np.ndarray, "n h h 3"]], float] | None,
    net: nn.Module | None,
) -> dict[str, Any]:
    views = np.stack([squares(one.path / "views.png") for one in objects])
    row: dict[str, Any] = {
        "prompt": objects[0].prompt,
        "guidance": objects[0].guidance,
        "seeds": [one.seed for one in objects],
        **dict.fromkeys(["clip_score", "inception_v3_score", "inception_v3_cross_fid"]),
    }
    if score is not None:
        row["clip_score"] = float(
            np.mean([score(one.prompt, seen) for one, seen in zip(objects, views, strict=True)])
        )
    if net is not None:
        flat = views.reshape(-1, *views.shape[2:])
        features, classes = (value.double().numpy() for value in inception_features(net, flat))
        row["inception_v3_score"] = inception_score(classes)
        if len(objects) > 1:
            halves = features.reshape(len(objects), views.shape[1], -1)
            row["inception_v3_cross_fid"] = cross_seed_fid(halves, shrinkage=0.0)
    return row
