"""Renumber a data set's labels as a classifier numbers its classes, by their names.

A label is a place in the data set's own list of names: another folder that lacks a class, has one more, or lists them
in another order means other classes by the same numbers.

    >>> test = in_classes_of(open_dataset("imagefolder:elsewhere", "test"), classifier_names, "imagefolder:elsewhere")

Names that are all numbers ("0" to "9", "00" to "99") are what data sets without names have.  Where one side has only
such names, label k is class k of the other side.
"""

import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import Dataset

from shared_core.data.arrays import ArrayImages
from shared_core.data.images import printable
from shared_core.data.labels import UNLABELLED, labels_of
from shared_core.data.masks import ArrayMasks


class NoCommonClassError(ValueError):
    """No class of a data set is one of the classifier's, so its labels say nothing about the classifier."""


class Renumbered(Dataset):
    """`dataset` with its labels k replaced by `places[k]`, which are classes in `class_names`."""

    def __init__(self, dataset: Dataset, places: Sequence[int], class_names: Sequence[str]) -> None:
        self.dataset, self.class_names = dataset, list(class_names)
        self.labels = torch.tensor(places)[labels_of(dataset)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return cast(Any, self.dataset)[index][0], int(self.labels[index])


def in_classes_of(
    dataset: Dataset, class_names: Sequence[str], what: str, warn: bool = True, ignore: int = 255
) -> Dataset:
    """Return `dataset` with labels that are places in `class_names`; itself where they are already.

    Args:
        what: the data set, as messages call it.
        warn: whether to warn of classes without an image, which get no score.
        ignore: of masks, the label of pixels that do not count, in place of the data set's own.

    Raises:
        NoCommonClassError: no name that has images is known.
        ValueError: some names, or numbers, that have images are not known; or there is no label at all.
    """
    own = getattr(dataset, "class_names", None)
    if isinstance(dataset, ArrayMasks):
        return _masks_in_classes_of(dataset, class_names, what, ignore)
    labels = labels_of(dataset)
    if len(labels) == 0:
        raise ValueError(f"there are no labels: {what} is empty")
    used = torch.bincount(labels).nonzero().flatten().tolist()
    places = match_classes(own, class_names, used, what)
    absent = [name for place, name in enumerate(class_names) if place not in {places[k] for k in used}]
    if absent and warn:
        warnings.warn(
            f"{what} has no image of {len(absent)} of {len(class_names)} classes: {_listed(absent)}",
            stacklevel=2,
        )
    if all(places[k] == k for k in used):
        return dataset
    if isinstance(dataset, ArrayImages):
        return ArrayImages(dataset.images, torch.tensor(places)[labels], class_names)
    return Renumbered(dataset, places, class_names)


def match_classes(
    own: Sequence[str] | None, known: Sequence[str], used: Iterable[int], what: str = "the data set"
) -> list[int]:
    """For every class of a data set its place in `known`; -1 for a name that is not there and has no image.

    Args:
        own: the data set's names; None for none.
        used: the labels that the data set holds; other classes need not be known.

    Names agree if they are equal in Unicode's composed form (a folder from a Mac and one from Linux).

    Raises:
        NoCommonClassError, ValueError: as :func:`in_classes_of`.
    """
    used = sorted(used)
    own = list(own) if own is not None else []
    # A label beyond its own names has its number for a name.
    own += [str(label) for label in range(len(own), max(used, default=-1) + 1)]
    if all(label < len(known) and own[label] == known[label] for label in used):
        return [
            label if label < len(known) and own[label] == known[label] else -1 for label in range(len(own))
        ]
    places = _by_name(own, known)
    missing = [own[label] for label in used if places[label] < 0]
    if missing and UNLABELLED not in missing and (_are_numbers(own) or _are_numbers(known)):
        if len(own) == 1 < len(known) and not _are_numbers(own):
            raise NoCommonClassError(
                f"{what} has the one class {_quoted(own[0])}, and the classifier's have no names"
            )
        places = _by_number(own, known)
        missing = [own[label] for label in used if places[label] < 0]
        if missing:
            raise ValueError(
                f"{what} has images with the labels {_listed(missing)}, but {len(known)} classes allow "
                f"{_allowed(known)}: renumber the labels, or set the number of classes"
            )
        if _are_numbers(own) != _are_numbers(known):
            _warn_of_order(known if _are_numbers(own) else own, what)
    if missing:
        error = NoCommonClassError if len(missing) == len(used) else ValueError
        raise error(
            f"{what} has classes that the classifier does not know: {_listed(missing)}; it knows {_listed(known)}. "
            f"{_remedy(missing, known)}"
        )
    doubles = sorted({own[label] for label in used if list(known).count(own[label]) > 1})
    if doubles:
        raise ValueError(
            f"{what} cannot be matched by class names: {_listed(doubles)} names several classes of the classifier"
        )
    return places


def _masks_in_classes_of(
    dataset: ArrayMasks, class_names: Sequence[str], what: str, ignore: int
) -> ArrayMasks:
    present = _levels(dataset.masks).nonzero().flatten().tolist()
    used = [label for label in present if label not in (dataset.ignore, ignore)]
    places = match_classes(dataset.class_names, class_names, used, what)
    table = torch.arange(256, dtype=torch.uint8)
    for label in used:
        table[label] = places[label]
    table[dataset.ignore] = ignore
    if all(table[label] == label for label in present):
        return dataset
    # Mask by mask, because an index takes eight bytes a pixel.
    masks = torch.stack([table[mask.long()] for mask in dataset.masks])
    return ArrayMasks(dataset.images, masks, class_names, ignore)


def _levels(masks: Tensor) -> Bool[Tensor, "256"]:
    """Which of the 256 labels occur; mask by mask, so that nothing of the size of all is made."""
    present = torch.zeros(256, dtype=torch.bool)
    for mask in masks:
        present |= torch.bincount(mask.flatten(), minlength=256) > 0
    return present


def _by_name(own: Sequence[str], known: Sequence[str]) -> list[int]:
    exact = {name: place for place, name in reversed(list(enumerate(known)))}
    composed = {_composed(name): place for name, place in exact.items()}
    return [exact.get(name, composed.get(_composed(name), -1)) for name in own]


def _by_number(own: Sequence[str], known: Sequence[str]) -> list[int]:
    numbers = {int(name): place for place, name in enumerate(known)} if _are_numbers(known) else None
    values = [int(name) for name in own] if _are_numbers(own) else list(range(len(own)))
    if numbers is not None:
        return [numbers.get(value, -1) for value in values]
    return [value if value < len(known) else -1 for value in values]


def _warn_of_order(names: Sequence[str], what: str) -> None:
    """Names on one side, numbers on the other: that they have one order can only be guessed."""
    # Names such as "3 - three" say their number.
    told = [name.split(maxsplit=1)[0] if name.strip() else "" for name in names]
    if not all(_are_numbers([first]) and int(first) == k for k, first in enumerate(told)):
        warnings.warn(
            f"{what}: classes are matched by number, 0 is {_quoted(names[0])}, because one side has no names: "
            "give both the same names if the order may differ",
            stacklevel=4,
        )


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _remedy(missing: Sequence[str], known: Sequence[str]) -> str:
    alike = {_composed(name).casefold(): name for name in known}
    for name in missing:
        meant = alike.get(_composed(name).casefold().strip())
        if meant is not None:
            return f"Is {_quoted(name)} meant to be {_quoted(meant)}? Give classes the same names"
    return "Give classes the same names, or leave the others' images out"


def _allowed(known: Sequence[str]) -> str:
    if _are_numbers(known) and list(map(int, known)) != list(range(len(known))):
        return _listed(known)
    return f"0 to {len(known) - 1}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names[:5])) + (", ..." if len(names) > 5 else "")


def _quoted(name: str) -> str:
    return name if name.isdigit() else f"'{printable(name)}'"
