"""CUB-200-2011 in its official split, read from the unpacked archive."""

import os
from pathlib import Path

import torch
from shared_core.data.images import read_image
from torch import Tensor
from torch.utils.data import Dataset


class Cub200(Dataset):
    """Items (uint8 image, class 0..199) of ``root/CUB_200_2011``, or of ``root`` if that is the folder itself.

    Raises:
        ValueError: the folder or one of its four list files is missing; says where to get them.
    """

    def __init__(self, root: Path, part: str, on_bad: str = "raise"):
        root = Path(os.path.expanduser(root))
        folder = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
        files = [folder / f"{n}.txt" for n in ("images", "image_class_labels", "train_test_split", "classes")]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {', '.join(missing)}; set data_root to the folder that holds CUB_200_2011/ "
                "(unpack CUB_200_2011.tgz of Caltech there)"
            )
        if on_bad != "raise":
            raise ValueError(f"on_bad={on_bad!r}: CUB-200-2011 has no bad image; only 'raise' is offered")
        paths, labels, in_train, names = ([line.split()[1] for line in _lines(file)] for file in files)
        wanted = "1" if part == "train" else "0"
        rows = [i for i, flag in enumerate(in_train) if flag == wanted]
        self.paths = [folder / "images" / paths[i] for i in rows]
        self.labels = torch.tensor([int(labels[i]) - 1 for i in rows])
        self.class_names = names

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(str(self.paths[index])), int(self.labels[index])


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
