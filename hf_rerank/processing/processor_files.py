"""The saved form of a processor's scales and vocabularies: JSON values and arrays, and reading them with checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hf_rerank.errors import InputError, show
from hf_rerank.processing.scaling import DenseScale
from hf_rerank.processing.vocabularies import HashVocabulary, TableVocabulary
from hf_rerank.schema import Categorical, ListSchema

# Division by a smaller one would exceed the range of float32.
SMALLEST_STD = 1e-30


def convert_scale(scale: DenseScale) -> dict[str, Any]:
    """A scale as JSON values: mean and std, and the optional fields that it has."""
    plain = asdict(scale)
    return {name: value for name, value in plain.items() if name in ("mean", "std") or value}


def read_scale(plain: Any, name: str, path: Path) -> DenseScale:
    """The scale that ``convert_scale`` converted to JSON values."""
    optional = {"knots", "quantiles", "constant_indicator"}
    if not isinstance(plain, dict) or set(plain) - optional != {"mean", "std"}:
        raise InputError(
            f"{path} has the scale {plain!r} for {name!r}: expected mean and std, and for a quantile scale also knots "
            "and quantiles; save the processor again"
        )
    knots, quantiles = plain.get("knots", ()), plain.get("quantiles", ())
    if not all(isinstance(part, list | tuple) for part in (knots, quantiles)):
        raise InputError(f"{path} has a quantile scale for {name!r} without lists of knots; save the processor again")
    odd = [value for value in (plain["mean"], plain["std"], *knots, *quantiles) if type(value) not in (int, float)]
    # A std of exactly 0 marks a constant column, which is not divided: it always becomes 0.
    if odd or not (plain["std"] == 0 or plain["std"] >= SMALLEST_STD):
        raise InputError(
            f"{path} has the scale {show(plain)} for {name!r}: expected numbers, and a std above 0, by which values "
            "are divided, or 0 for a constant column; save the processor again"
        )
    if type(plain.get("constant_indicator", False)) is not bool:
        raise InputError(
            f"{path} has the scale {show(plain)} for {name!r}: expected true or false as constant_indicator; save the "
            "processor again"
        )
    if len(knots) != len(quantiles) or list(knots) != sorted(knots):
        raise InputError(
            f"{path} has a quantile scale for {name!r} with {len(knots)} knots and {len(quantiles)} quantiles: "
            "expected equal numbers, and ascending knots; save the processor again"
        )
    return DenseScale(
        plain["mean"], plain["std"], tuple(knots), tuple(quantiles), plain.get("constant_indicator", False)
    )


def list_own_tables(schema: ListSchema) -> list[Categorical]:
    """The categorical features that have their own embedding table."""
    features = (*schema.items, *schema.user, *schema.history)
    return [feature for feature in features if isinstance(feature, Categorical) and feature.shares is None]


def make_vocabulary_arrays(vocabularies: Mapping[str, TableVocabulary | HashVocabulary]) -> dict[str, np.ndarray]:
    """The arrays of vocabularies, by name; hashed tables need none."""
    arrays = {}
    for name, vocabulary in vocabularies.items():
        if isinstance(vocabulary, HashVocabulary):
            continue
        if isinstance(vocabulary.values, list):
            encoded = [value.encode() for value in vocabulary.values]
            arrays[f"text/{name}"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
            arrays[f"text_lengths/{name}"] = np.array([len(value) for value in encoded], dtype=np.int64)
        else:
            arrays[f"integers/{name}"] = vocabulary.values
    return arrays


def read_vocabularies(
    schema: ListSchema, arrays: Mapping[str, np.ndarray], path: Path
) -> dict[str, TableVocabulary | HashVocabulary]:
    """The vocabularies of a schema from the arrays of ``make_vocabulary_arrays``, read from the file ``path``.

    Raises:
        InputError: Arrays are missing or damaged.
    """
    vocabularies: dict[str, TableVocabulary | HashVocabulary] = {}
    for feature in list_own_tables(schema):
        if feature.hash_size is not None:
            vocabularies[feature.name] = HashVocabulary(feature.hash_size)
        elif f"integers/{feature.name}" in arrays:
            integers = arrays[f"integers/{feature.name}"]
            if integers.dtype != np.int64 or integers.ndim != 1:
                raise InputError(
                    f"{path} holds {integers.dtype} {list(integers.shape)} as the vocabulary of {feature.name!r}: "
                    "expected int64 [values]; the file was changed, save or download the processor again"
                )
            vocabularies[feature.name] = TableVocabulary(integers)
        elif f"text/{feature.name}" in arrays and f"text_lengths/{feature.name}" in arrays:
            joined = arrays[f"text/{feature.name}"].tobytes()
            lengths = arrays[f"text_lengths/{feature.name}"]
            if lengths.dtype != np.int64 or lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != len(joined):
                raise InputError(
                    f"{path} holds a damaged vocabulary of {feature.name!r}: the lengths of its strings do not add up "
                    f"to {len(joined):,} bytes; save or download the processor again"
                )
            ends = np.cumsum(lengths)
            starts = ends - lengths
            try:
                texts = [joined[start:end].decode() for start, end in zip(starts, ends, strict=True)]
            except (TypeError, UnicodeDecodeError) as error:
                raise InputError(
                    f"{path} holds a damaged vocabulary of {feature.name!r}: {error}; save or download the processor "
                    "again"
                ) from None
            vocabularies[feature.name] = TableVocabulary(texts)
        else:
            raise InputError(f"{path} has no vocabulary for {feature.name!r}: the file belongs to another processor")
    return vocabularies
