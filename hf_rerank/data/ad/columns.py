"""The files, the schema and the columns of Ad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from hf_rerank.data.ad.history import HISTORY_COLUMNS
from hf_rerank.data.ad.lists import PROFILE_COLUMNS
from hf_rerank.data.ad.tables import AD_FEATURE, BEHAVIOR_LOG, RAW_SAMPLE, USER_PROFILE
from hf_rerank.data.prm_public.truth import truth_file
from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema

MAX_LIST_LENGTH = 10
HISTORY_LENGTH = 50


@dataclass(frozen=True)
class AdFiles:
    """The raw files. ``behavior_log`` is None if there is none; lists then have no history."""

    raw_sample: Path
    ad_feature: Path
    user_profile: Path
    behavior_log: Path | None = None

    def list_existing(self) -> list[Path]:
        """The existing files, and the ground truth of simulated lists if it exists."""
        files = (self.raw_sample, self.ad_feature, self.user_profile, self.behavior_log, truth_file(self.raw_sample))
        return [path for path in files if path is not None and path.is_file()]


def find_ad_files(data_dir: str | Path) -> AdFiles:
    """The raw files of a folder.

    Raises:
        InputError: One of raw_sample.csv, ad_feature.csv and user_profile.csv is missing; the message says where to
            get them.
    """
    folder = Path(data_dir)
    raw = (RAW_SAMPLE, AD_FEATURE, USER_PROFILE, BEHAVIOR_LOG)
    paths = [folder / table.file for table in raw]
    missing = [path.name for path in paths[:3] if not path.is_file()]
    if missing:
        there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        held = f"it holds {', '.join(there[:5]) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"no {' and no '.join(missing)} in {folder} ({held}): expected raw_sample.csv, ad_feature.csv and "
            "user_profile.csv, unpacked, and behavior_log.csv for lists with a history. The dataset is 'Ad "
            "Display/Click Data on Taobao.com', number 56 on Alibaba's Tianchi; `hf-rerank simulate ad` makes files "
            "of the same format"
        )
    raw_sample, ad_feature, user_profile, behavior_log = paths
    return AdFiles(raw_sample, ad_feature, user_profile, behavior_log if behavior_log.is_file() else None)


def ad_schema(
    max_list_length: int = MAX_LIST_LENGTH,
    history_length: int = HISTORY_LENGTH,
    *,
    history: bool = False,
    position: bool = False,
    examination: Sequence[float] | None = None,
    attraction: bool = False,
) -> ListSchema:
    """The schema of Ad; ``user``, ``time_stamp`` and ``pid`` are not features.

    Args:
        max_list_length: Maximum number of items per list.
        history_length: Maximum number of behaviours per list.
        history: Add the columns of earlier behaviours, as features.
        position: Add the column ``position`` (simulated lists).
        examination: Probability that each position is examined, from position 0 (simulated lists).
        attraction: Add the column ``attraction`` (simulated lists).
    """
    behaviours: list[Categorical | Dense] = [
        Categorical("history_btag"),
        Categorical("history_cate", shares="cate_id"),
        Categorical("history_brand", shares="brand"),
        Dense("history_minutes_ago", scale="log"),
    ]
    return ListSchema(
        items=[
            *(Categorical(name) for name in ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")),
            Dense("price", scale="log"),
        ],
        user=[Categorical(name) for name in PROFILE_COLUMNS],
        history=behaviours if history else [],
        label="click",
        list_id="list_id",
        group="user",
        position="position" if position else None,
        attraction="attraction" if attraction else None,
        cut_label="click_cut",
        examination=examination,
        max_list_length=max_list_length,
        max_history_length=max(1, history_length),
    )


def ad_columns(history: bool = False, position: bool = False, attraction: bool = False) -> pa.Schema:
    """The Arrow columns of the lists, in order."""
    fields = [("list_id", pa.string()), ("user", pa.int64()), *((name, pa.int64()) for name in PROFILE_COLUMNS)]
    integers = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")
    fields += [(name, pa.list_(pa.int64())) for name in integers]
    fields += [("price", pa.list_(pa.float32())), ("time_stamp", pa.list_(pa.int64())), ("pid", pa.list_(pa.string()))]
    fields += [("click", pa.list_(pa.int8())), ("click_cut", pa.list_(pa.int8()))]
    fields += [(name, pa.list_(kind)) for name, kind in HISTORY_COLUMNS.items()] if history else []
    fields += [("split", pa.string())]
    fields += [("position", pa.list_(pa.int64()))] if position else []
    fields += [("attraction", pa.list_(pa.float32()))] if attraction else []
    return pa.schema(fields)
