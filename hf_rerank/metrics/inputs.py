"""Inputs of the metrics: read, checked, ranked and reduced, as numpy arrays of lists."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from hf_rerank.errors import InputError, suggestion

# Valid ranges of named inputs.
_BOUNDS = {
    "labels": (0.0, math.inf),
    "attraction": (0.0, 1.0),
    "positions": (0.0, math.inf),
    "propensities": (0.0, 1.0),
}


def read_lists(mask: Any, **inputs: Any) -> tuple[list[np.ndarray], np.ndarray, tuple[int, ...]]:
    """Brings named inputs of one shape ``[..., list]`` to checked float64 ``[lists, list]``, with 0 at padding.

    Args:
        mask: bool, the shape of the inputs, or None.
        inputs: array-likes or tensors, by the name that error messages use and ``_BOUNDS`` may list.

    Returns:
        The arrays in the order given, the mask as bool [lists, list], and the leading axes.
    """
    arrays = {name: _read_array(name, value) for name, value in inputs.items()}
    first = next(iter(arrays))
    shape = arrays[first].shape
    if mask is None:
        mask = np.ones(shape, dtype=bool)
    else:
        mask = _read_array("mask", mask)
        if mask.dtype != bool:
            raise InputError(f"mask must be bool, True = a real item; got {mask.dtype}: give mask != 0")
    for name, array in {**arrays, "mask": mask}.items():
        if array.shape != shape:
            raise InputError(f"{name} must have the shape of {first}, {list(shape)}; got {list(array.shape)}")
    *leading, width = shape
    flat_shape = (math.prod(leading), width)
    mask = mask.reshape(flat_shape)
    read = []
    for name, array in arrays.items():
        array = array.reshape(flat_shape).astype(np.float64)
        low, high = _BOUNDS.get(name, (-math.inf, math.inf))
        bad = mask & ~(np.isfinite(array) & (array >= low) & (array <= high))
        if bad.any():
            raise InputError(
                f"{name} of real items must be finite{f' and in [{low:g}, {high:g}]' if name in _BOUNDS else ''}; "
                f"{_describe_first(array, bad, leading)}. If that is padding, pass mask, True at real items"
            )
        read.append(np.where(mask, array, 0.0))
    return read, mask, tuple(leading)


def read_cut_labels(cut_labels: Any, leading: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Reads the labels of items that were cut, float64 [lists, cut items], 0 at padding, and their number per list."""
    if cut_labels is None:
        cut_labels = np.zeros((*leading, 0))
    array = _read_array("cut_labels", cut_labels).astype(np.float64)
    if array.shape[:-1] != leading:
        raise InputError(
            f"cut_labels must have the leading axes of scores, {list(leading)}; got {list(array.shape[:-1])}"
        )
    array = array.reshape(math.prod(leading), array.shape[-1])
    if not np.isfinite(array).all():
        raise InputError("cut_labels must be finite, at least 0, and below 0 at padding")
    return np.maximum(array, 0.0), (array >= 0).sum(axis=-1)


def read_examination(examination: Any) -> np.ndarray:
    """Checks the examination probabilities by position, from the top; float64 [positions]."""
    array = _read_array("examination", examination).astype(np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():
        raise InputError("examination must be one row of probabilities in [0, 1], one per position, from 0")
    return array


def check_k(k: int | None) -> int | None:
    """Checks k: an int >= 1, or None."""
    if k is None:
        return None
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k must be a whole number >= 1, or None for the whole list; got {k!r}")
    return int(k)


def check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses an option that is not one of ``known``."""
    if value not in known:
        raise InputError(
            f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}{suggestion(str(value), known)}"
        )


def find_fraction(labels: np.ndarray) -> float | None:
    """Finds a label that is not a whole number; None if all are."""
    fractional = labels != np.floor(labels)
    return float(labels[fractional][0]) if fractional.any() else None


def refuse_fractions(fraction: float | None) -> None:
    if fraction is not None:
        raise InputError(
            f"labels must be whole numbers here, a click being a label > 0; found {fraction:g}: give labels > "
            "THRESHOLD, or measure fractional labels with ndcg"
        )


def rank_slots(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sorts slots by falling score, ties in slot order, padding last: the slot at each position, [lists, list]."""
    return np.argsort(np.where(mask, -scores, np.inf), axis=-1, kind="stable")


def reduce_lists(values: np.ndarray, reduction: str, shape: tuple[int, ...]) -> float | np.ndarray:
    """``"mean"``: the mean over lists, nan over none. ``"none"``: the values with the leading axes of the input."""
    check_option("reduction", reduction, ("mean", "none"))
    if reduction == "none":
        return values.reshape(shape)
    return float(values.mean()) if values.size else math.nan


def _read_array(name: str, value: Any) -> np.ndarray:
    torch = sys.modules.get("torch")  # where torch was never imported, nothing can be a tensor
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} must be lists of one width: pad them and pass mask ({error})") from error
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be numbers of shape [..., list]; got {array.dtype}, shape {list(array.shape)}")
    return array


def _describe_first(array: np.ndarray, bad: np.ndarray, leading: list[int]) -> str:
    """``"found nan in list 3, slot 7"``: the first bad value, by the caller's axes."""
    row, slot = (int(i) for i in np.argwhere(bad)[0])
    index = [int(i) for i in np.unravel_index(row, leading)] if leading else []
    place = f"list {index[0] if len(index) == 1 else tuple(index)}, " if index else ""
    return f"found {array[row, slot]} in {place}slot {slot}"
