"""The files, the schema and the columns of PRM Public."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from hf_rerank.data.prm_public.line_format import BASIC_COLUMNS, CATEGORICAL_COLUMNS, OPTIONAL_COLUMNS, USER_COLUMNS
from hf_rerank.data.prm_public.truth import HISTORY_COLUMNS
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema

MAX_LIST_LENGTH = 30
_FILE_NAME = re.compile(r"(set1\.train\.txt\.part[^.]+)(\.gz)?")


def find_files(data_dir: str | Path) -> list[Path]:
    """The raw files of a folder, ``set1.train.txt.part1`` and so on, or ``set1.train.txt.part1.gz``, in order.

    Raises:
        InputError: There are none; the message says where to get them. Or a file exists both compressed and
            uncompressed.
    """
    folder = Path(data_dir)
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    names = [name for name in there if _FILE_NAME.fullmatch(name)]
    if not names:
        held = f"it holds {', '.join(there[:5]) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"no PRM Public text in {folder} ({held}): expected set1.train.txt.part1 and set1.train.txt.part2, "
            "unpacked or as .gz. The dataset is linked from the authors' repository, hf4Academic/PRM on GitHub; "
            "`hf-rerank simulate prm_public` makes files in the same format"
        )
    twice = [name for name in names if f"{name}.gz" in names]
    if twice:
        raise InputError(f"{folder} holds both {twice[0]} and {twice[0]}.gz: keep one of them")
    unpacked = {name: name.removesuffix(".gz") for name in names}
    return [folder / name for name in sorted(names, key=lambda name: (len(unpacked[name]), unpacked[name]))]


def prm_public_schema(
    max_list_length: int = MAX_LIST_LENGTH,
    position: bool = False,
    examination: Sequence[float] | None = None,
    attraction: bool = False,
    history: bool = False,
) -> ListSchema:
    """The schema of PRM Public.

    Args:
        max_list_length: Maximum number of items per list.
        position: Add the column ``position``, from an initial ranker or the simulator.
        examination: Probability that each position is examined, from position 0 (simulated lists).
        attraction: Add the column ``attraction`` (simulated lists).
        history: Add the columns of the user's earlier clicks (simulated lists), as features.
    """
    earlier_clicks: list[Categorical | Dense] = [
        *(Categorical(f"history_{name}", shares=name) for name in ("item_id", "item_1", "item_3")),
        Dense("history_basic_2"),
        Dense("history_price_gap"),
        Dense("history_minutes_ago", scale="log"),
    ]
    return ListSchema(
        items=[
            *(Categorical(name) for name in CATEGORICAL_COLUMNS),
            *(Dense(name, scale="standard", missing="mean") for name in (*BASIC_COLUMNS, *OPTIONAL_COLUMNS)),
        ],
        user=[Categorical(name) for name in USER_COLUMNS],
        history=earlier_clicks if history else [],
        label="click",
        list_id="list_id",
        group="user_id",
        position="position" if position else None,
        attraction="attraction" if attraction else None,
        cut_label="click_cut",
        examination=examination,
        max_list_length=max_list_length,
    )


def prm_public_columns(position: bool = False, attraction: bool = False, history: bool = False) -> pa.Schema:
    """The Arrow columns of the lists, in order."""
    fields = [("list_id", pa.string()), ("user_id", pa.int64()), *((name, pa.int64()) for name in USER_COLUMNS)]
    fields += [(name, pa.list_(pa.int64())) for name in CATEGORICAL_COLUMNS]
    fields += [(name, pa.list_(pa.float32())) for name in (*BASIC_COLUMNS, *OPTIONAL_COLUMNS)]
    fields += [("click", pa.list_(pa.int8())), ("click_cut", pa.list_(pa.int8())), ("split", pa.string())]
    fields += [("position", pa.list_(pa.int64()))] if position else []
    fields += [("attraction", pa.list_(pa.float32()))] if attraction else []
    fields += [(name, pa.list_(kind)) for name, kind in HISTORY_COLUMNS.items()] if history else []
    return pa.schema(fields)
