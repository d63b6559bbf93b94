"""Image classification sets of the Hugging Face hub, or of a local folder in its formats (extra `hf`)."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from shared_core.data.images import BadImageError, image_bytes
from shared_core.data.labels import UNLABELLED, NoSplitError, as_labels


class HubImages(Dataset):
    """A split of a Hugging Face data set with an image column and a class label column.

    Images are converted as files are (:func:`shared_core.data.images.image_bytes`).  With `labelled` off a table
    without labels, or with -1 for all, has the one class UNLABELLED.
    """

    def __init__(self, table: Any, name: str, labelled: bool = True) -> None:
        kinds = _kinds(table)
        self._image = _only(kinds, "Image", name)
        self._table, self._name = table, name
        if not labelled and not _has_labels(table, kinds):
            self.labels, self.class_names = as_labels([0] * len(table)), [UNLABELLED]
            return
        label = _only(kinds, "ClassLabel", name)
        self.labels = as_labels(list(table[label]))
        self.class_names = list(table.features[label].names)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = f"hf:{self._name}, row {index}"
        try:
            image = self._table[int(index)][self._image]
        # What Pillow raises when the library decodes a broken file for us.
        except (OSError, SyntaxError, ValueError) as error:
            raise BadImageError(f"cannot read the image of {row}: {error}") from error
        if image is None:
            raise BadImageError(f"cannot read the image of {row}: there is none")
        return image_bytes(image, name=row), int(self.labels[index])


def open_hub(name: str, split: str, labelled: bool = True) -> HubImages:
    """`split` "test" takes the split of that name, else "validation"; one with labels (not -1) before one without.

    Raises NoSplitError for none; ImportError names the extra.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f'hf:{name} needs the extra "hf": pip install "shared-core[hf]"') from error
    available = datasets.get_dataset_split_names(name)
    wanted = [split] if split == "train" else ["test", "validation"]
    chosen = [s for s in wanted if s in available]
    if not chosen:
        raise NoSplitError(f"hf:{name} has no split {' or '.join(wanted)}; it has {', '.join(available)}")
    tables = [datasets.load_dataset(name, split=s) for s in chosen]
    # Published test sets often keep their labels back, as -1.
    table = next((t for t in tables if _has_labels(t, _kinds(t))), tables[0])
    return HubImages(table, name, labelled)


def _kinds(table: Any) -> dict[str, str]:
    return {column: type(feature).__name__ for column, feature in table.features.items()}


def _has_labels(table: Any, kinds: dict[str, str]) -> bool:
    """Whether one column holds labels, not -1 for all."""
    columns = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    return len(columns) == 1 and any(label != -1 for label in table[columns[0]])


def _only(kinds: dict[str, str], kind: str, name: str) -> str:
    columns = [column for column, found in kinds.items() if found == kind]
    if len(columns) != 1:
        raise ValueError(f"hf:{name} must have one column of kind {kind}, its columns are {kinds}")
    return columns[0]
