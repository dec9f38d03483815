"""Formats simulated lists as PRM Public's raw text, and their ground truth as a table."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.prm_public.truth import HISTORY_COLUMNS
from hf_rerank.data.simulation.prm_public_lists import ShownLists
from hf_rerank.data.simulation.prm_public_world import PRMWorld


def format_lines(lists: ShownLists) -> list[str]:
    """The raw lines, formatted by whole columns, since this takes most of the simulator's time."""
    labels = pa.array(["0.0", "1.0"]).take(pa.array(lists.click.ravel().astype(np.int8)))
    columns = [
        pa.array(lists.user_id).cast(pa.string()),
        _join(_format_integers(lists.user_categorical), lists.user_categorical.shape),
        _join(_format_integers(lists.item_categorical), lists.item_categorical.shape),
        _join(_format_decimals(lists.basic), lists.basic.shape),
        _join(_format_decimals(lists.optional), lists.optional.shape),
        _join(labels, lists.click.shape),
    ]
    lines = pc.binary_join_element_wise(*columns, "|")
    return pc.binary_join_element_wise(lines, "", "\n").to_pylist()


def _format_integers(values: np.ndarray) -> pa.Array:
    """Integers as text, ``null`` for -1."""
    flat = values.ravel()
    return pc.fill_null(pa.array(flat, mask=flat == -1).cast(pa.string()), "null")


def _format_decimals(values: np.ndarray) -> pa.Array:
    """Floats as text with at most six decimals and at least one, never an exponent; ``null`` for NaN."""
    flat = np.round(values.ravel(), 6)
    text = pc.fill_null(pa.array(flat, mask=np.isnan(flat)).cast(pa.string()), "null")
    whole = flat == np.trunc(flat)  # pyarrow writes 1.0 as "1"
    if whole.any():
        # int() also turns -0.0 into 0
        replacement = pa.array([f"{int(number)}.0" for number in flat[whole]], pa.string())
        text = pc.replace_with_mask(text, pa.array(whole), replacement)
    return text


def _join(text: pa.Array, shape: tuple[int, ...]) -> pa.Array:
    """Numbers as text, flattened from ``shape``, as one JSON list for each entry of the first axis."""
    for size in reversed(shape[1:]):
        ends = pa.array(np.arange(0, len(text) + 1, size, dtype=np.int32))
        inside = pc.binary_join(pa.ListArray.from_arrays(ends, text), ", ")
        text = pc.binary_join_element_wise("[", inside, "]", "")
    return text


def make_truth_schema(world: PRMWorld, seed: int) -> pa.Schema:
    """Columns and metadata of the file of ground truth."""
    per_slot = [("attraction", pa.list_(pa.float32()))]
    metadata: dict[str, str] = {"mode": world.mode}
    if world.click_model == "position":  # other click models have no examination curve by position
        metadata["examination"] = json.dumps(world.examination.tolist())
    if world.mode == "order":
        per_slot = [("base_attraction", pa.list_(pa.float32())), ("category", pa.list_(pa.int32()))]
        metadata["same_category_decay"] = json.dumps(world.same_category_decay)
    parameters, history = asdict(world), HISTORY_COLUMNS
    if not world.history_length:
        # Parameters that matter only with a history are left out, so that the bytes of worlds without one do not
        # change.
        history = {}
        del parameters["history_length"], parameters["personal_taste"]
    if world.click_model == "position":
        del parameters["click_model"]
    metadata |= {"world": json.dumps(parameters), "seed": json.dumps(int(seed))}
    columns = [("list_id", pa.string()), *per_slot, ("initial_position", pa.list_(pa.int32()))]
    columns += [(name, pa.list_(kind)) for name, kind in history.items()]
    return pa.schema(columns, metadata=metadata)


def make_truth_table(lists: ShownLists, schema: pa.Schema, part: int, first_line: int) -> pa.Table:
    """The ground truth of lists that begin at ``first_line`` of the raw file."""
    per_slot = {
        "attraction": lists.attraction,
        "base_attraction": lists.attraction,
        "category": lists.category,
        "initial_position": lists.initial_position,
    }
    ends = pa.array(np.arange(0, lists.click.size + 1, lists.click.shape[1], dtype=np.int32))
    history_ends = None
    if lists.history_lengths is not None:
        history_ends = pa.array(np.concatenate([[0], np.cumsum(lists.history_lengths)]).astype(np.int32))
    columns = [pa.array([f"part{part}:{first_line + row}" for row in range(len(lists))])]
    for field in schema:
        if field.name in lists.history:
            values = pa.array(lists.history[field.name]).cast(field.type.value_type)
            columns.append(pa.ListArray.from_arrays(history_ends, values))
        elif field.name != "list_id":
            values = pa.array(per_slot[field.name].ravel()).cast(field.type.value_type)
            columns.append(pa.ListArray.from_arrays(ends, values))
    return pa.table(columns, schema=schema)
