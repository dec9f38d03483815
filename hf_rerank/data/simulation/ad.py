"""Writes simulated Ad lists: the four raw files, with the ground truth next to them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq

from hf_rerank.data.simulation.ad_behaviours import draw_behaviours
from hf_rerank.data.simulation.ad_csv import CSV_HEADERS, CSVFiles, make_truth_schema, make_truth_table
from hf_rerank.data.simulation.ad_lists import count_users, draw_ads, draw_blocks
from hf_rerank.data.simulation.ad_world import LARGEST_USER, AdWorld
from hf_rerank.data.simulation.click_process import check_counts, show_progress
from hf_rerank.errors import InputError
from hf_rerank.storage import create_folder

RAW_SAMPLE = "raw_sample.csv"


def simulate_ad(
    output_dir: str | Path,
    lists: int,
    *,
    seed: int = 0,
    world: AdWorld = AdWorld(),  # noqa: B008 - frozen
    behaviours: int | None = None,
    progress: bool = False,
) -> Path:
    """Write ``raw_sample.csv``, ``ad_feature.csv``, ``user_profile.csv`` and ``behavior_log.csv`` in the raw format of
    Ad, and the ground truth of ``raw_sample.csv`` next to it.

    The ground truth, ``raw_sample.csv.truth.parquet``, has one row per shown list, with or without a click:
    ``list_id`` (``{user}-{time_stamp of its newest impression}``), ``attraction`` (float32) and ``initial_position``
    (from 0: where the simulator's own noisy initial ranker puts the ad; not the display order), both with one entry
    per impression, ordered by time, which is the display order. Its schema metadata contains ``examination`` (a JSON
    list, by position), ``world`` (all parameters, as JSON) and ``seed``.

    The impressions of a user are scattered over those of 32,768 users, and so are the behaviours.

    The same arguments give the same bytes. The folder appears when all files are complete.

    Args:
        output_dir: Created if missing; must be empty.
        lists: Number of lists to show, at least 1, including those without a click and single impressions.
        seed: Non-negative seed.
        world: The parameters of the world.
        behaviours: Number of rows of ``behavior_log.csv``. None: ``behaviours_per_user`` for each user. 0: no such
            file.
        progress: Show a progress bar.

    Returns:
        The path of ``raw_sample.csv``.

    Raises:
        InputError: An argument out of range, a folder that is not empty, more users than ids, or another process that
            is writing the folder.
        CannotWrite: The disk is full or not writable.
    """
    check_counts("simulate_ad", lists=(lists, 1), seed=(seed, 0), behaviours=(behaviours or 0, 0))
    n_users = count_users(world, lists)
    if n_users > LARGEST_USER:
        raise InputError(
            f"{lists:,} lists need {n_users:,} users, but there are only {LARGEST_USER:,} ids: raise "
            f"AdWorld.lists_per_user (now {world.lists_per_user})"
        )
    if behaviours is None:
        behaviours = round(world.behaviours_per_user * n_users)
    names = [name for name in CSV_HEADERS if name != "behavior_log.csv" or behaviours]
    schema = make_truth_schema(world, seed)
    with create_folder(output_dir) as folder, ExitStack() as stack:
        truth = stack.enter_context(pq.ParquetWriter(folder / f"{RAW_SAMPLE}.truth.parquet", schema))
        files = stack.enter_context(CSVFiles({name: folder / name for name in names}))
        ads = draw_ads(world, seed)
        files.write_ads(ads)
        for block in show_progress(draw_blocks(world, ads, seed, lists), lists, progress):
            files.write_users(block.users)
            files.write_impressions(ads, block)
            truth.write_table(make_truth_table(block, schema))
            if behaviours:
                files.write_behaviours(ads, block, draw_behaviours(world, ads, block, seed, behaviours, n_users))
    return Path(output_dir) / RAW_SAMPLE
