"""Makes the lists of a bucket of users: sessions, the columns of ads and profiles, history, ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from hf_rerank.data.ad.history import find_histories
from hf_rerank.data.ad.sessions import MAX_SESSION_ITEMS, Sessions, choose_sessions, expand_ranges, find_sessions
from hf_rerank.data.ad.tables import AD_FEATURE, USER_PROFILE
from hf_rerank.data.ad.truth import join_truth
from hf_rerank.data.report import PrepareReport
from hf_rerank.data.splits import assign_splits
from hf_rerank.data.truncating import make_sequences

AD_COLUMNS = ("cate_id", "campaign_id", "customer", "brand", "price")
PROFILE_COLUMNS = tuple(name for name in USER_PROFILE.columns if name != USER_PROFILE.key)


@dataclass(frozen=True)
class Bucket:
    """The rows of some users.

    Attributes:
        impressions: Rows of raw_sample.csv, sorted by user and time.
        sessions: All sessions of these rows.
    """

    impressions: pl.DataFrame
    sessions: Sessions

    @classmethod
    def from_impressions(cls, impressions: pl.DataFrame) -> Bucket:
        """The bucket of impressions, given in the order of the file; equal times keep that order."""
        ordered = impressions.sort("user", "time_stamp", maintain_order=True)
        users, times, clicks = (ordered[name].to_numpy() for name in ("user", "time_stamp", "clk"))
        return cls(ordered, find_sessions(users, times, clicks))


@dataclass(frozen=True)
class ListMaker:
    """Makes lists from buckets.

    Attributes:
        ads: The rows of ad_feature.csv, ordered by ``adgroup_id``.
        profiles: The rows of user_profile.csv, ordered by ``userid``.
        columns: The columns of the lists, from ``hf_rerank.data.ad.ad_columns``.
        protocol: See ``choose_sessions``.
        max_list_length: Maximum number of items per list; longer lists are cut.
        history_length: Maximum number of behaviours per list.
        truth_path: The file of the ground truth, for error messages.
    """

    ads: pl.DataFrame
    profiles: pl.DataFrame
    columns: pa.Schema
    protocol: str
    max_list_length: int
    history_length: int
    truth_path: Path

    def make(
        self, bucket: Bucket, behaviours: pl.DataFrame | None, truth: pl.DataFrame | None, report: PrepareReport
    ) -> pa.Table:
        """The lists of a bucket, by user and time; sessions kept and dropped are counted in ``report``."""
        impressions, sessions = bucket.impressions, bucket.sessions
        users, times, clicks = (impressions[name].to_numpy() for name in ("user", "time_stamp", "clk"))
        extra = {} if truth is None else join_truth(sessions, users, times, truth, self.truth_path)
        report.read += len(sessions)
        report.count("impressions", len(users))
        report.count("users", len(np.unique(users)))
        chosen = choose_sessions(sessions, users, self.protocol, report.drop, report.count)
        rows, of_list, positions = self._cut(chosen, clicks, extra.get("position"), report)

        offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(of_list, minlength=len(chosen)))]), pa.int32())
        user, newest = users[chosen.starts], times[chosen.ends - 1]
        items = impressions[rows]
        per_item = {
            "adgroup_id": items["adgroup_id"].to_arrow(),
            **_look_up(self.ads, AD_FEATURE.key, AD_COLUMNS, items["adgroup_id"], "items of unknown ads", report),
            "time_stamp": items["time_stamp"].to_arrow(),
            "pid": items["pid"].to_arrow(),
            "click": items["clk"].to_arrow(),
        }
        if "position" in extra:
            per_item["position"] = pa.array(positions)
        if "attraction" in extra:
            per_item["attraction"] = pa.array(extra["attraction"][rows])
        ids = pl.DataFrame({"user": user, "newest": newest}).select(pl.format("{}-{}", "user", "newest")).to_series()
        per_list = {
            "list_id": ids.to_arrow(),
            "user": pa.array(user),
            **_look_up(
                self.profiles, USER_PROFILE.key, PROFILE_COLUMNS, pl.Series(user), "lists without a profile", report
            ),
            "split": pa.array(assign_splits(user.tolist()), pa.string()),
            "click_cut": _collect_cut_clicks(chosen, clicks, rows),
        }
        sequences = {name: (offsets, values) for name, values in per_item.items()}
        if behaviours is not None:
            values, lengths = find_histories(behaviours, user, times[chosen.starts], self.history_length)
            report.count("lists without a behaviour before", int((lengths == 0).sum()))
            history_offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
            sequences |= {name: (history_offsets, column) for name, column in values.items()}
        arrays = []
        for field in self.columns:
            if field.name in per_list:
                arrays.append(per_list[field.name].cast(field.type))
            else:
                own_offsets, column = sequences[field.name]
                arrays.append(pa.ListArray.from_arrays(own_offsets, column.cast(field.type.value_type)))
        return pa.Table.from_arrays(arrays, schema=self.columns)

    def _cut(
        self, chosen: Sessions, clicks: np.ndarray, initial: np.ndarray | None, report: PrepareReport
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cuts lists to the earliest 30 items, then to the first ``max_list_length`` of the initial order.

        Returns:
            The impressions that are kept, the list of each, and its position in the initial order of its list.
        """
        ends = np.minimum(chosen.ends, chosen.starts + MAX_SESSION_ITEMS)
        rows, of_list = expand_ranges(chosen.starts, ends)
        positions = rows - chosen.starts[of_list]  # by time
        if initial is not None:
            order = np.lexsort((initial[rows], of_list))
            positions[order] = positions.copy()  # item k of the initial order gets position k
        kept = positions < self.max_list_length
        rows, of_list, positions = rows[kept], of_list[kept], positions[kept]
        lengths = np.bincount(of_list, minlength=len(chosen))
        clicks_left = np.bincount(of_list, weights=clicks[rows], minlength=len(chosen))
        report.cut_lists += int((lengths < chosen.ends - chosen.starts).sum())
        report.lost_clicks += int(((chosen.clicks > 0) & (clicks_left == 0)).sum())
        return rows, of_list, positions


def _collect_cut_clicks(chosen: Sessions, clicks: np.ndarray, kept: np.ndarray) -> pa.ListArray:
    """The clicks of the impressions of each session that are not kept."""
    rows, of_list = expand_ranges(chosen.starts, chosen.ends)
    cut = ~np.isin(rows, kept)
    lengths = np.bincount(of_list[cut], minlength=len(chosen))
    return make_sequences(clicks[rows[cut]].astype(np.int8), lengths, pa.list_(pa.int8()))


def _look_up(
    table: pl.DataFrame,
    key: str | None,
    names: tuple[str, ...],
    wanted: pl.Series,
    unknown: str,
    report: PrepareReport,
) -> dict[str, pa.Array]:
    """Looks up the rows of ``table`` with the keys ``wanted``; nulls for missing keys, which are counted."""
    assert key is not None
    keys, values = table[key].to_numpy(), wanted.to_numpy()
    found = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    missing = keys[found] != values
    report.count(unknown, int(missing.sum()))
    indices = pa.array(found, mask=missing)
    return {name: table[name].to_arrow().take(indices) for name in names}
