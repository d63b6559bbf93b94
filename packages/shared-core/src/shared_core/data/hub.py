"""Image classification sets of the Hugging Face hub, or of a local folder in its formats (extra `hf`)."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from shared_core.data.images import BadImageError, image_bytes
from shared_core.data.labels import as_labels


class HubImages(Dataset):
    """A split of a Hugging Face data set with an image column and a class label column.

    Images are converted as files are (:func:`shared_core.data.images.image_bytes`).
    """

    def __init__(self, table: Any, name: str) -> None:
        kinds = {column: type(feature).__name__ for column, feature in table.features.items()}
        self._image = _only(kinds, "Image", name)
        self._label = _only(kinds, "ClassLabel", name)
        self._table, self._name = table, name
        self.labels = as_labels(list(table[self._label]))
        self.class_names = list(table.features[self._label].names)

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


def open_hub(name: str, split: str) -> HubImages:
    """`split` "test" takes the split of that name, else "validation".  ImportError names the extra."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f'hf:{name} needs the extra "hf": pip install "shared-core[hf]"') from error
    available = datasets.get_dataset_split_names(name)
    wanted = [split] if split == "train" else ["test", "validation"]
    chosen = [s for s in wanted if s in available]
    if not chosen:
        raise ValueError(f"hf:{name} has no split {' or '.join(wanted)}; it has {', '.join(available)}")
    return HubImages(datasets.load_dataset(name, split=chosen[0]), name)


def _only(kinds: dict[str, str], kind: str, name: str) -> str:
    columns = [column for column, found in kinds.items() if found == kind]
    if len(columns) != 1:
        raise ValueError(f"hf:{name} must have one column of kind {kind}, its columns are {kinds}")
    return columns[0]
