"""Writes simulated lists of Ad: the four CSV files with the original headers, and the file of ground truth."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from hf_rerank.data.simulation.ad_behaviours import BTAGS, Behaviours
from hf_rerank.data.simulation.ad_lists import MISSING_LEVEL, NO_BRAND, AdBlock, Ads, AdUsers
from hf_rerank.data.simulation.ad_world import AdWorld

CSV_HEADERS = {
    "raw_sample.csv": "user,time_stamp,adgroup_id,pid,nonclk,clk",
    "ad_feature.csv": "adgroup_id,cate_id,campaign_id,customer,brand,price",
    # The last name ends with a space, as in the real file.
    "user_profile.csv": "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
    "occupation,new_user_class_level ",
    "behavior_log.csv": "user,time_stamp,btag,cate,brand",
}
PIDS = ("430548_1007", "430539_1007")


class CSVFiles:
    """Some of the four files, open for writing, each with its header.

    Args:
        paths: Name as in ``CSV_HEADERS`` -> path of the file.
    """

    def __init__(self, paths: dict[str, Path]) -> None:
        self.paths = paths
        self._stack = ExitStack()

    def __enter__(self) -> CSVFiles:
        with ExitStack() as stack:
            self._files = {name: stack.enter_context(open(path, "wb")) for name, path in self.paths.items()}
            for name, file in self._files.items():
                file.write(f"{CSV_HEADERS[name]}\n".encode("ascii"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def write_ads(self, ads: Ads) -> None:
        brand = _replace_by_null(ads.brand_id, NO_BRAND)
        ids = (ads.id, ads.category_id, ads.campaign_id, ads.customer_id)
        self._write("ad_feature.csv", *ids, brand, ads.price, null="NULL")

    def write_users(self, users: AdUsers) -> None:
        rows = np.flatnonzero(users.has_profile)
        levels = [_replace_by_null(values[rows], MISSING_LEVEL) for values in users.profile.values()]
        self._write("user_profile.csv", users.id[rows], *levels, null="")

    def write_impressions(self, ads: Ads, block: AdBlock) -> None:
        row, slot = np.nonzero(block.mask)
        row, slot = row[block.file_order], slot[block.file_order]
        click = block.click[row, slot].astype(np.int8)
        pid = pl.Series(PIDS, dtype=pl.String).gather(block.pid[row])
        user, ad = block.users.id[block.user[row]], ads.id[block.item[row, slot]]
        self._write("raw_sample.csv", user, block.time[row, slot], ad, pid, 1 - click, click)

    def write_behaviours(self, ads: Ads, block: AdBlock, behaviours: Behaviours) -> None:
        item = behaviours.item
        btag = pl.Series(BTAGS, dtype=pl.String).gather(behaviours.btag)
        brand = _replace_by_null(ads.brand_id[item], NO_BRAND)
        user, category = block.users.id[behaviours.user], ads.category_id[item]
        self._write("behavior_log.csv", user, behaviours.time_stamp, btag, category, brand, null="NULL")

    def _write(self, name: str, *columns: np.ndarray | pl.Series, null: str = "") -> None:
        table = pl.DataFrame({str(number): column for number, column in enumerate(columns)})
        table.write_csv(self._files[name], include_header=False, null_value=null)


def _replace_by_null(values: np.ndarray, missing: int) -> pl.Series:
    return pl.Series(np.where(values == missing, 0, values)).set(pl.Series(values == missing), None)


def make_truth_schema(world: AdWorld, seed: int) -> pa.Schema:
    """Columns and metadata of the file of ground truth."""
    metadata = {
        "examination": json.dumps(world.examination.tolist()),
        "world": json.dumps(asdict(world)),
        "seed": json.dumps(int(seed)),
    }
    columns = [
        ("list_id", pa.string()),
        ("attraction", pa.list_(pa.float32())),
        ("initial_position", pa.list_(pa.int64())),
    ]
    return pa.schema(columns, metadata=metadata)


def make_truth_table(block: AdBlock, schema: pa.Schema) -> pa.Table:
    """The ground truth of the lists of a block, in order of user and time."""
    newest = block.time[np.arange(len(block.lengths)), block.lengths - 1]
    user = pa.array(block.users.id[block.user]).cast(pa.string())
    list_id = pc.binary_join_element_wise(user, pa.array(newest).cast(pa.string()), "-")
    ends = pa.array(np.concatenate([[0], np.cumsum(block.lengths)]).astype(np.int32))
    per_item = [
        pa.ListArray.from_arrays(ends, pa.array(values[block.mask]).cast(schema.field(name).type.value_type))
        for name, values in (("attraction", block.attraction), ("initial_position", block.initial_position))
    ]
    return pa.table([list_id, *per_item], schema=schema)
