"""The numbers of clean lines, all at once, in two thirds of the time of Polars' JSON decoder.

Clean lines of one length differ in nothing but their numbers: the marks between them are the same in every line. So
the marks are compared with those of a made line, and what lies between is read as numbers. Whatever is not exactly
so, in layout or in a single number, is left to the JSON decoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa


class NotClean(Exception):
    """The lines are not clean; they may be good all the same."""


_NULL = np.frombuffer(b"null", dtype=np.uint8)
# Text that is looked at at a time: more falls out of the processor's cache, and takes twice the time.
CACHED_BYTES = 2**19


def make_line(widths: Sequence[int], items: int) -> bytes:
    """A line as clean lines look, of zeros: a user id, ``widths[0]`` values of the user, for each other width an array
    of that many values per item, and the labels."""
    of_items = [[[0] * width] * items for width in widths[1:]]
    return "|".join(["0", *map(json.dumps, ([0] * widths[0], *of_items, [0] * items))]).encode() + b"\n"


def read_numbers(text: bytes, ends: np.ndarray, made: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of lines that are laid out as one made line is.

    Args:
        text: ASCII lines, each with its line end.
        ends: Where they end.
        made: See ``make_line``.

    Returns:
        Their values as ``float`` reads them, [lines, numbers per line], 0 for null, and which of them are null.

    Raises:
        NotClean: They are laid out in another way, or hold what is no finite number as JSON writes it.
    """
    letters = np.frombuffer(made, dtype=np.uint8)
    marks = np.flatnonzero(_is_mark(letters))
    # What stands at each mark, and whether a number ends there.
    layout = letters[marks], np.diff(marks, prepend=-1) > 1
    values = np.empty((len(ends), int(layout[1].sum())))
    missing = np.empty(values.shape, dtype=bool)
    first = start = 0
    while first < len(ends):
        last = max(int(np.searchsorted(ends, start + CACHED_BYTES)), first + 1)
        _read(text[start : ends[last - 1]], *layout, values[first:last], missing[first:last])
        first, start = last, int(ends[last - 1])
    if not np.isfinite(values).all():
        raise NotClean
    return values, missing


def _read(text: bytes, marks: np.ndarray, ends_number: np.ndarray, values: np.ndarray, missing: np.ndarray) -> None:
    """Reads some lines into ``values`` and ``missing``."""
    letters = np.frombuffer(text, dtype=np.uint8)
    is_mark = _is_mark(letters)
    places = np.flatnonzero(is_mark)
    if len(places) != len(values) * len(marks) or not _is_written_as_json(letters, is_mark):
        raise NotClean
    # How many letters stand before each mark, [lines, marks per line].
    before = (np.diff(places, prepend=-1) - 1).reshape(-1, len(marks))
    if (letters[places].reshape(before.shape) != marks).any() or ((before > 0) != ends_number).any():
        raise NotClean
    lengths = before[:, np.flatnonzero(ends_number)].ravel()
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    numbers = text.translate(None, b",[]| \n")
    is_null = _is_null(np.frombuffer(numbers, dtype=np.uint8), offsets)
    missing[:] = is_null.reshape(missing.shape)
    valid = pa.py_buffer(np.packbits(~is_null, bitorder="little"))
    texts = pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(numbers), valid)
    try:
        read = texts.cast(pa.float64())
    except pa.ArrowInvalid:  # not a number
        raise NotClean from None
    values[:] = np.frombuffer(read.buffers()[1], dtype=np.float64).reshape(values.shape)
    values[missing] = 0.0  # arrow does not say what it leaves there


def _is_mark(letters: np.ndarray) -> np.ndarray:
    """Which letters stand between numbers: ``,[]|`` and blanks. With them whatever comes before the comma in ASCII,
    which is found in no clean line."""
    return (letters <= ord(",")) | (letters == ord("[")) | (letters == ord("]")) | (letters == ord("|"))


def _is_written_as_json(letters: np.ndarray, is_mark: np.ndarray) -> bool:
    """Whether no number is written as 01, .5 or 5., which JSON does not know, or as -0, which is 0 in JSON."""
    is_digit = letters - np.uint8(ord("0")) < 10  # what comes before 0 wraps around to above 200
    lone_dot = (letters[1:-1] == ord(".")) & ~(is_digit[:-2] & is_digit[2:])
    is_zero = letters[2:-1] == ord("0")
    signed = (letters[1:-2] == ord("-")) & is_mark[:-3]
    wrong_zero = is_zero & ((is_mark[1:-2] | signed) & is_digit[3:] | (signed & is_mark[3:]))
    return not lone_dot.any() and not wrong_zero.any()


def _is_null(letters: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which numbers are the word null. No other may hold an n."""
    found = np.flatnonzero(letters == ord("n"))
    number = np.searchsorted(offsets, found, side="right") - 1
    if (offsets[number] != found).any() or (offsets[number + 1] != found + len(_NULL)).any():
        raise NotClean
    if (letters[found[:, None] + np.arange(len(_NULL))] != _NULL).any():
        raise NotClean
    is_null = np.zeros(len(offsets) - 1, dtype=bool)
    is_null[number] = True
    return is_null
