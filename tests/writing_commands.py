"""Everything that writes: the commands and the methods that write, with inputs that take only a moment."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hf_rerank import Categorical, Dense, DNNConfig, DNNForReranking, ListProcessor, ListSchema, Reranker, cli
from hf_rerank.data.loading import load_lists
from hf_rerank.errors import InputError
from hf_rerank.storage import save_files

SCHEMA = ListSchema(items=[Categorical("item_id"), Dense("price")], list_id="list_id", label="click")


@dataclass(frozen=True)
class Writer:
    """A command or method that writes.

    Attributes:
        run: ``(inputs, work, variant) -> exit code``: writes below ``work``. Variants 0 and 1 write different bytes
            to the same names.
        before: ``(inputs, work)``: Creates the files that exist before the run.
        source: Input below ``inputs`` that is changed while it is read; "": none.
        reading: Function, as ``module:name``, that is called while the source is read.
        kills: Number of disk operations at which it is killed.
        apart: Whether it writes files that are independent of each other.
    """

    run: Callable[[Path, Path, int], int]
    source: str = ""
    reading: str = ""
    kills: int = 4
    before: Callable[[Path, Path], object] = lambda inputs, work: None
    apart: bool = False


def command(*arguments: Any) -> int:
    """Runs a command and returns its exit code."""
    return cli.main([str(argument) for argument in arguments])


def method(call: Callable[[], object]) -> int:
    """Calls a method and prints its errors as the commands do."""
    try:
        call()
    except (InputError, OSError) as error:
        print(f"hf-rerank: {error}", file=sys.stderr)
        return 2
    return 0


def make_inputs(folder: Path) -> None:
    """Creates raw files, custom files, prepared lists and untrained models."""
    use_cache(folder / "cache")
    draw = np.random.default_rng(0)
    rows = []
    for number in range(40):
        length = int(draw.integers(2, 5))
        rows.append(
            {
                "list_id": f"l{number}",
                "item_id": draw.integers(9, size=length).tolist(),
                "price": draw.normal(size=length).round(2).tolist(),
                "click": (draw.random(length) < 0.5).astype(int).tolist(),
            }
        )
    (folder / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    SCHEMA.save(folder / "schema.json")
    (folder / "more").mkdir()
    shutil.copyfile(folder / "own.jsonl", folder / "more" / "own.jsonl")
    assert command("simulate", "prm_public", "--output-dir", folder / "raw", "--lists", 60) == 0
    assert command("simulate", "ad", "--output-dir", folder / "ad", "--lists", 150) == 0
    given = ["--input", folder / "own.jsonl", "--schema", folder / "schema.json", "--ranker-train"]
    assert command("prepare", "own", *given, "--output-dir", folder / "lists") == 0
    lists = load_lists(folder / "lists")
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[4], embedding_dim=2))
        with save_files(folder / f"model{seed}") as staging:
            model.save_pretrained(staging)
            processor.save_pretrained(staging)
            (staging / "results.json").write_text("{}\n")
    copy_model(folder, folder / "unused")
    assert evaluate(folder, folder / "unused", 0) == 0  # fills the cache of datasets


def use_cache(folder: Path) -> None:
    """Makes a folder the cache of ``datasets`` of this process."""
    datasets.config.HF_DATASETS_CACHE = folder


def copy_model(inputs: Path, work: Path) -> None:
    shutil.copytree(inputs / "model0", work / "model")


def evaluate(inputs: Path, work: Path, variant: int) -> int:
    use_cache(inputs / "cache")
    return command(
        *("evaluate", "--model", work / "model", "--data", inputs / "lists", "--ks", 2 + variant),
        *("--json", work / "out.json", "--plots", work / "plots", "--add-to-results"),
    )


def cache_custom_files(inputs: Path, work: Path, variant: int) -> int:
    use_cache(work / "cache")
    return method(lambda: load_lists(inputs / "own.jsonl", schema=SCHEMA))


def rank(suffix: str) -> Callable[[Path, Path, int], int]:
    def run(inputs: Path, work: Path, variant: int) -> int:
        output = work / f"ranked.{suffix}"
        return command(
            "rank", "--model", inputs / f"model{variant}", "--input", inputs / "own.jsonl", "--output", output
        )

    return run


def prepare_own(inputs: Path, work: Path, variant: int) -> int:
    given = ["--input", inputs / "own.jsonl", "--schema", inputs / "schema.json", "--output-dir", work / "lists"]
    return command("prepare", "own", *given, *(["--ranker-train"] if variant else []))


def prepare_ad_in_order(inputs: Path, work: Path, variant: int) -> int:
    given = ["--raw-dir", inputs / "ad", "--output-dir", work / "lists", "--initial-ranker", "lambdamart"]
    return command("prepare", "ad", *given, "--quality", ("poor", "moderate")[variant])


def prepare_prm_public(inputs: Path, work: Path, variant: int) -> int:
    given = ["--raw-dir", inputs / "raw", "--output-dir", work / "lists"]
    return command("prepare", "prm_public", *given, "--history-length", 3 + variant)


def infer_schema(inputs: Path, work: Path, variant: int) -> int:
    return command("schema", "infer", inputs / "own.jsonl", "--output", work / "schema.json", "--rows", 30 + variant)


def simulate(kind: str) -> Callable[[Path, Path, int], int]:
    return lambda inputs, work, variant: command(
        "simulate", kind, "--output-dir", work / "raw", "--lists", 30, "--seed", variant
    )


def initial_rank(inputs: Path, work: Path, variant: int) -> int:
    return command("initial-rank", "--data", inputs / "lists", "--output-dir", work / "sorted", "--seed", variant)


def vectors(inputs: Path, work: Path, variant: int) -> int:
    given = ["--data", inputs / "lists", "--output-dir", work / "lists", "--dim", 2, "--max-train-lists", 10]
    return command("vectors", *given, "--seed", variant)


def propensities(inputs: Path, work: Path, variant: int) -> int:
    given = ["--data", inputs / "lists", "--output-dir", work / "lists"]
    return command("propensities", *given, "--same-from", 2 + variant)


def export(inputs: Path, work: Path, variant: int) -> int:
    return command("export", "--model", inputs / f"model{variant}", "--output-dir", work / "exported")


def save(inputs: Path, work: Path, variant: int) -> int:
    """Overwrites an existing model."""
    return method(lambda: Reranker.from_pretrained(inputs / f"model{variant}").save_pretrained(work / "model"))


OF_LISTS, OWN = "lists/report.json", "own.jsonl"
RERANK = "hf_rerank.inference.reranker:Reranker.rerank"
LOAD = "hf_rerank.processing:ListProcessor.from_pretrained"
WRITERS: dict[str, Writer] = {
    "simulate prm_public": Writer(simulate("prm_public")),
    "simulate ad": Writer(simulate("ad")),
    "schema infer": Writer(infer_schema, OWN, "hf_rerank.data.custom.inference:unify_tables"),
    "prepare own": Writer(prepare_own, OWN, "hf_rerank.data.custom.custom_source:ListChecker.check"),
    "prepare prm_public": Writer(
        prepare_prm_public, "raw/set1.train.txt.part1", "hf_rerank.data.prm_public.source:read_unit"
    ),
    "prepare ad --initial-ranker": Writer(
        prepare_ad_in_order, "ad/raw_sample.csv", "hf_rerank.data.ad.source:Partition.fill", kills=3
    ),
    "initial-rank": Writer(initial_rank, OF_LISTS, "hf_rerank.initial_rankers.order:LambdaMARTRanker.fit", kills=2),
    "vectors": Writer(vectors, OF_LISTS, "hf_rerank.personalised_vectors:ClickModel.fit", kills=3),
    "propensities": Writer(propensities, OF_LISTS, "hf_rerank.data.position_bias.adding:read_click_log", kills=3),
    "evaluate": Writer(
        evaluate, OF_LISTS, "hf_rerank.evaluation:evaluate_orders", before=copy_model, apart=True, kills=3
    ),
    "rank to JSON": Writer(rank("jsonl"), OWN, RERANK, kills=3),
    "rank to Parquet": Writer(rank("parquet"), OWN, RERANK, kills=3),
    "rank to packed CSV": Writer(rank("csv.gz"), OWN, RERANK, kills=3),
    "export": Writer(export, "model0/config.json", LOAD),
    "save": Writer(save, "model0/config.json", LOAD, before=copy_model),
    "cache of datasets": Writer(cache_custom_files, OWN, "hf_rerank.data.custom.own_datasets:read_tables"),
}
