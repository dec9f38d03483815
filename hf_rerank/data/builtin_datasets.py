"""The built-in datasets: simulated or prepared once in the cache of ``datasets``, and read from there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets

from hf_rerank.data.lists_cache import cache_folder
from hf_rerank.data.prepared import partial_folder
from hf_rerank.data.report import RejectedLines
from hf_rerank.schema import ListSchema
from hf_rerank.storage import InputFiles, remove

logger = logging.getLogger(__name__)

SIMULATED_LISTS = 20_000


def cache_simulated_prm(n_lists: int | None, seed: int, max_list_length: int | None) -> Path:
    """The cached folder of prepared lists of a simulation, created if needed."""
    from hf_rerank.data.prm_public import MAX_LIST_LENGTH, prepare_prm_public
    from hf_rerank.data.simulation import PRMWorld, simulate_prm

    n_lists = SIMULATED_LISTS if n_lists is None else n_lists
    length = MAX_LIST_LENGTH if max_list_length is None else max_list_length

    def make(folder: Path) -> None:
        logger.warning("Simulating %s lists (seed %d) into %s; their clicks are not real.", n_lists, seed, folder)
        raw = folder.with_name(f"{folder.name}.raw")
        remove(raw)  # left by a process that was killed
        try:
            simulate_prm(raw, n_lists, seed=seed, progress=True)
            prepare_prm_public(raw, folder, max_list_length=length)
        finally:
            remove(raw)

    key = {"n_lists": n_lists, "seed": seed, "world": repr(PRMWorld()), "max_list_length": length}
    return cache_folder(f"simulated_prm-{n_lists}-{seed}", key, make)


def stream_prm_public(
    data_dir: Path, protocol: str, seed: int, max_list_length: int | None
) -> tuple[dict[str, Any], ListSchema]:
    """Splits that stream raw text, and their schema."""
    from hf_rerank.data import prm_public
    from hf_rerank.data.prm_public.stream import PRMPublicText

    length = prm_public.MAX_LIST_LENGTH if max_list_length is None else max_list_length
    files = prm_public.find_files(data_dir)
    truth = prm_public.read_truth_header(files)
    schema = prm_public.prm_public_schema(length, truth.position, truth.examination, truth.attraction, truth.history)
    text = PRMPublicText(
        ranges=prm_public.find_ranges(files),
        columns=prm_public.prm_public_columns(truth.position, truth.attraction, truth.history),
        options={"protocol": protocol, "max_list_length": length, "seed": seed},
        cache_dir=str(datasets.config.HF_DATASETS_CACHE),
    )
    return dict(text.as_streaming_dataset()), schema


def cache_prm_public(data_dir: Path, protocol: str, seed: int, max_list_length: int | None) -> Path:
    """The cached folder of prepared lists of raw text, created if needed."""
    from hf_rerank.data import prm_public

    length = prm_public.MAX_LIST_LENGTH if max_list_length is None else max_list_length
    files = prm_public.find_files(data_dir)
    raw = [*files, *(side for path in files if (side := prm_public.truth_file(path)).is_file())]
    key = {
        "files": InputFiles(raw).read_states(),
        "folder": str(data_dir.resolve()),
        "protocol": protocol,
        "seed": seed if protocol == "public" else None,
        "max_list_length": length,
    }

    def make(folder: Path) -> None:
        logger.warning(
            "Preparing %s into %s, once; `hf-rerank prepare` writes to a folder of your choice.", data_dir, folder
        )
        try:
            prm_public.prepare_prm_public(data_dir, folder, protocol=protocol, max_list_length=length, seed=seed)
        except RejectedLines as error:
            # After a fix the files differ, and get another folder.
            remove(partial_folder(folder))
            advice = "; fix the line, or load a folder made by `hf-rerank prepare --on-error skip`"
            raise RejectedLines(error.lines, advice) from None

    return cache_folder("prm_public", key, make)


def cache_ad(data_dir: Path, protocol: str, max_list_length: int | None) -> Path:
    """The cached folder of prepared lists of the raw files of Ad, created if needed."""
    from hf_rerank.data import ad

    length = ad.MAX_LIST_LENGTH if max_list_length is None else max_list_length
    raw = ad.find_ad_files(data_dir).list_existing()
    key = {
        "files": InputFiles(raw).read_states(),
        "folder": str(data_dir.resolve()),
        "protocol": protocol,
        "max_list_length": length,
    }

    def make(folder: Path) -> None:
        logger.warning(
            "Preparing %s into %s, once; `hf-rerank prepare` writes to a folder of your choice.", data_dir, folder
        )
        ad.prepare_ad(data_dir, folder, protocol=protocol, max_list_length=length)

    return cache_folder("ad", key, make)
