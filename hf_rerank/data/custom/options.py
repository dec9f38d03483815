"""Options for reading files: what the format itself does not specify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hf_rerank.errors import InputError

# Unquoted cells of CSV that mean "missing" in every column; only database exports contain them.
NULL_STRINGS = ("NULL", "\\N")
# In a column of numbers these also can only mean "missing"; in a column of text, NA may be Namibia.
NULL_NUMBERS = (*NULL_STRINGS, "NA", "N/A", "n/a", "null", "None", "<NA>")


@dataclass(frozen=True)
class ReadOptions:
    """Options of the readers.

    Args:
        separator: Separator of CSV cells. None: a tab in ``.tsv`` files, a comma in others.
        column_names: Names of the columns of CSV files without a header.
        list_separator: Separator of the values in a cell that contains a list, such as ``"|"`` for ``a|b|c``. Then one
            row is one list.
        label_separator: Separator of an item and its label in such a cell, such as ``"-"`` for ``N1-1 N2-0``. The
            labels become the column of labels.
        null_strings: Cells of text that mean "missing", in every column. None: ``NULL`` and ``\\N``, and in columns
            of numbers also ``NA``, ``N/A``, ``n/a``, ``null``, ``None`` and ``<NA>``.
    """

    separator: str | None = None
    column_names: tuple[str, ...] | None = None
    list_separator: str | None = None
    label_separator: str | None = None
    null_strings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and len(self.separator) != 1:
            raise InputError(f"separator is {self.separator!r}: expected one character")
        for name in ("list_separator", "label_separator"):
            if getattr(self, name) == "":
                raise InputError(f"{name} is empty: expected at least one character, or leave it out")
        if self.label_separator is not None and self.list_separator is None:
            raise InputError(
                "label_separator needs list_separator, which separates one labelled item from the next; name both"
            )
        for name in ("column_names", "null_strings"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def nulls_of_text(self) -> tuple[str, ...]:
        """The strings that mean "missing" in a column of text."""
        return NULL_STRINGS if self.null_strings is None else self.null_strings

    @property
    def nulls_of_numbers(self) -> tuple[str, ...]:
        """The strings that mean "missing" in a column of numbers."""
        return NULL_NUMBERS if self.null_strings is None else self.null_strings

    def to_dict(self) -> Mapping[str, Any]:
        """Plain JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
