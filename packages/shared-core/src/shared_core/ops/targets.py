"""Class numbers as losses want them: one int64 per image, whatever integer type they came in."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor


def class_numbers(labels: Any, count: int | None = None, what: str = "labels") -> Int64[Tensor, " batch"]:
    """Labels of any integer type or bool, a list, or an array as int64, on the device where they are.

    `count` is the number of images they belong to, `what` their name in messages.  Nothing is read back from the
    device: whether the numbers fit the classes is for the caller to check.

    Raises TypeError for fractions, one-hot and soft labels, ValueError for another number of labels.
    """
    kind = "class indices" if what == "labels" else "indices"
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{what} must be {kind}, one integer per image; got a {type(labels).__name__}"
            ) from error
    if labels.dim() == 0 and count == 1:
        labels = labels.reshape(1)
    given = f"{labels.dtype} of shape {tuple(labels.shape)}"
    if labels.dim() == 2 and labels.shape[1] == 1 and not _fractional(labels):
        raise TypeError(f"{what} must be {kind}, one integer per image; got {given}: give labels.squeeze(1)")
    if labels.dim() == 2:
        raise TypeError(
            f"{what} must be {kind}, one integer per image; got {given}, as of one-hot or soft labels: "
            "give labels.argmax(1)"
        )
    if labels.dim() != 1:
        raise TypeError(f"{what} must be {kind}, one integer per image; got {given}")
    if _fractional(labels) and labels.numel():
        raise TypeError(
            f"{what} must be {kind}, one integer per image; got {given}: give labels.long() if they are "
            "whole numbers"
        )
    if count is not None and len(labels) != count:
        raise ValueError(f"there are {len(labels)} {what} for {count} images")
    return labels.to(torch.int64)


def _fractional(labels: Tensor) -> bool:
    return labels.is_floating_point() or labels.is_complex()
