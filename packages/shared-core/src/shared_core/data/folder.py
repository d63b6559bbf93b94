"""A folder of images, one sub-folder per class, with a policy for files that cannot be decoded."""

import os

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared_core.data.images import SUFFIXES, BadImageError, printable, read_image, warn_left_out
from shared_core.data.labels import UNLABELLED
from shared_core.data.walk import Walk, above, identity, is_dead, is_hidden, walk_all


class FolderImages(Dataset):
    """`folder/CLASS/**/*.jpg` and so on; classes in the order of their names; an item is `(uint8 CHW, int)`.

    `on_bad="raise"` raises BadImageError with the path.  `on_bad="skip"` gives, in place of a file that
    cannot be decoded, the next file of the same class that can: a pure function of the files, so all ranks
    and workers see the same.  The files met so far are in `bad_files`, also those met by loader workers; once
    they are more than `max_bad_share` of all files, it is an error.

    Hidden names and links back to folders above are left out, with a warning that counts them
    (:mod:`shared_core.data.walk`), as are images beside the class folders.  With `class_names=[UNLABELLED]` a folder
    without sub-folders is of that one class.

    Raises FileNotFoundError without the folder, ValueError without classes or images, or for one folder under
    two class names.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        on_bad: str = "raise",
        mode: str = "RGB",
        max_bad_share: float = 0.05,
        class_names: list[str] | None = None,
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad is {on_bad!r}; it must be 'raise' or 'skip'")
        folder = os.path.expanduser(folder)
        self.folder, self.on_bad, self.mode, self.max_bad_share = folder, on_bad, mode, max_bad_share
        flat = class_names == [UNLABELLED] and not has_classes(folder)
        found = [UNLABELLED] if flat else class_folders(folder)
        self.class_names = found if class_names is None else class_names
        unknown = sorted(set(found) - set(self.class_names))
        if unknown:
            raise ValueError(
                f"{printable(folder)} has classes that the training set lacks: {', '.join(unknown)}"
            )
        self.files: list[str] = []
        labels: list[int] = []
        self._class_start: list[int] = []
        roots = [folder] if flat else [os.path.join(folder, name) for name in found]
        walks = dict(zip(found, walk_all(roots, SUFFIXES), strict=True))
        for label, name in enumerate(self.class_names):
            files = walks[name].files if name in walks else []
            self._class_start.append(len(self.files))
            self.files += files
            labels += [label] * len(files)
        beside = Walk.empty() if flat else _beside(folder, found)
        warn_left_out(folder, [beside, *walks.values()], len(beside.files))
        if not self.files:
            raise ValueError(f"no image lies below the class folders of {printable(folder)}")
        self.labels = torch.tensor(labels, dtype=torch.int64)
        # Shared memory, so that what a loader's worker meets is counted for all of them.
        self._bad = torch.zeros(len(self.files), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.labels[index])
        if self.on_bad == "raise":
            return read_image(self.files[index], self.mode), label
        start = self._class_start[label]
        count = (
            self._class_start[label + 1] - start if label + 1 < len(self._class_start) else len(self) - start
        )
        for step in range(count):
            candidate = start + (index - start + step) % count
            try:
                return read_image(self.files[candidate], self.mode), label
            except BadImageError:
                self._bad[candidate] = 1
                self._check_share()
        raise BadImageError(f"no image of class {self.class_names[label]!r} can be read")

    @property
    def bad_files(self) -> list[str]:
        """The files that could not be decoded so far, in the order of the data set."""
        return [self.files[i] for i in torch.nonzero(self._bad).flatten().tolist()]

    def _check_share(self) -> None:
        bad = self.bad_files
        if len(bad) > self.max_bad_share * len(self):
            shown = ", ".join(printable(path) for path in bad[:5])
            raise BadImageError(
                f"{len(bad)} of {len(self)} images cannot be read, more than the share of "
                f"{self.max_bad_share} that may be skipped: {shown}{', ...' if len(bad) > 5 else ''}"
            )


def has_classes(folder: str | os.PathLike[str]) -> bool:
    """Whether there is a sub-folder that is not hidden."""
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not is_hidden(entry.name) for entry in entries)


def class_folders(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the sub-folders, sorted; hidden ones and links to a folder above are none.

    Raises FileNotFoundError for no folder, ValueError for none in it, or for two that are one folder.
    """
    folder = os.path.expanduser(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {printable(folder)}")
    upward = above(folder) | {identity(folder)}
    names: dict[tuple[int, int], str] = {}
    for name in sorted(os.listdir(folder), key=os.fsencode):
        path = os.path.join(folder, name)
        if is_hidden(name) or not os.path.isdir(path) or identity(path) in upward:
            continue
        other = names.setdefault(identity(path), name)
        if other != name:
            raise ValueError(
                f"in {printable(folder)} the classes {printable(other)} and {printable(name)} are one folder, by a "
                "link: its images cannot have two labels; remove one of them"
            )
    if not names:
        raise ValueError(f"{printable(folder)} has no sub-folder: images must lie in one folder per class")
    return sorted(names.values(), key=os.fsencode)


def _beside(folder: str, classes: list[str]) -> Walk:
    """What lies beside the class folders and is left out."""
    beside = Walk.empty()
    for name in set(os.listdir(folder)) - set(classes):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            (beside.hidden if is_hidden(name) else beside.repeated).append(path)
        elif is_dead(path) and not is_hidden(name):
            beside.dead.append(path)
        elif name.lower().endswith(SUFFIXES):
            (beside.hidden if is_hidden(name) else beside.files).append(path)
    return beside
