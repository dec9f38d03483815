"""``hf-rerank rank``: lists from a file, in bounded memory; by a model, or without torch by its exported graph."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import add_revision, model_options, without_bars_of_a_moment
from hf_rerank.errors import InputError

TABLE_FILES = (".jsonl", ".parquet")
RANK_BATCH = 512


def add(commands: Any) -> None:
    """The options."""
    rank = commands.add_parser("rank", help="rank lists from a file")
    rank.add_argument(
        "--model",
        required=True,
        metavar="RUN",
        help="folder or Hub repository of the model, or of what hf-rerank export made of it",
    )
    add_revision(rank)
    rank.add_argument(
        "--input", required=True, type=Path, metavar="FILE", help="lists, .jsonl or .parquet, a row a list"
    )
    rank.add_argument("--output", required=True, type=Path, metavar="FILE", help="ranked lists, .jsonl or .parquet")
    rank.add_argument("--top-k", type=int, metavar="K", help="items a list (default: all)")
    rank.add_argument("--truncate", action="store_true", help="rank only the first places of lists that are too long")
    rank.set_defaults(run=run, parser=rank)


def run(options: argparse.Namespace) -> None:
    """Ranks."""
    for path in (options.input, options.output):
        if path.suffix not in TABLE_FILES:
            raise InputError(f"{path}: expected a file that ends in {' or '.join(TABLE_FILES)}")
    if not options.input.is_file():
        raise InputError(f"no file {options.input}: expected lists, one a row")
    at = model_options(options.model, options.revision)
    from tqdm import tqdm

    from hf_rerank.processing import EncodingReport

    reranker = _load(options.model, at)
    report = EncodingReport()
    partial = options.output.with_name(options.output.name + ".partial")
    try:
        with _writer(partial, options.output.suffix) as write, tqdm(unit="list", delay=1, disable=None) as bar:
            number = 0
            for rows in _batches(options.input):
                ranked, met = _ranked_batch(reranker, rows, number, options)
                write(ranked)
                report.add(met)
                number += len(rows)
                bar.update(len(rows))
        if not number:
            raise InputError(f"{options.input} holds no list: expected at least one row")
        os.replace(partial, options.output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{report.lists:,} lists ranked, in {options.output}")
    if report.cut_lists:
        print(f"{report.cut_lists:,} lists were too long and cut ({report.cut_items:,} items left out)")
    if report.cut_histories:
        newest = reranker.processor.schema.max_history_length
        left_out = f"{report.cut_history_items:,} items left out"
        print(f"{report.cut_histories:,} histories were cut to the newest {newest} ({left_out})")
    for name, share in report.unknown_share().items():
        if share:
            print(f"{share:.2%} of {name} unknown")
    for name, count in report.missing.items():
        print(f"{count:,} values of {name} missing")


def _load(source: str, at: dict[str, Any]) -> Any:
    from hf_rerank.inference.reranker import Reranker
    from hf_rerank.processing.processor import CONFIG_FILE
    from hf_rerank.storage.hub_download import at_one_commit, holds_only_a_graph

    at = at_one_commit(source, CONFIG_FILE, **at)
    if not holds_only_a_graph(source, **at):  # which ranks without transformers, and this imports it
        without_bars_of_a_moment()
    return Reranker.from_pretrained(source, **at)


def _ranked_batch(reranker: Any, rows: list[dict[str, Any]], number: int, options: argparse.Namespace) -> Any:
    try:
        return reranker.rerank(rows, options.top_k, options.truncate, with_report=True, batch_size=RANK_BATCH)
    except InputError as error:
        raise InputError(f"{options.input}, rows from {number}: {error}") from None


def _batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Rows of a file, a batch at a time."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq
        from pyarrow import ArrowInvalid

        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=RANK_BATCH):
                yield batch.to_pylist()
        except ArrowInvalid as error:
            raise InputError(f"{path} is no Parquet file: {error}") from None
        return
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise InputError(f"{path}, line {number} is no JSON: {error}; expected one list a line") from None
            if len(rows) == RANK_BATCH:
                yield rows
                rows = []
    if rows:
        yield rows


class _writer:
    """Appends ranked lists to a file: a context whose value is the function that writes a batch."""

    def __init__(self, path: Path, kind: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.kind = path, kind
        self.parquet: Any = None
        self.lines = path.open("w", encoding="utf-8") if kind == ".jsonl" else None

    def __enter__(self) -> Any:
        return self._write

    def __exit__(self, *failure: object) -> None:
        if self.lines is not None:
            self.lines.close()
        if self.parquet is not None:
            self.parquet.close()

    def _write(self, ranked: list[dict[str, Any]]) -> None:
        if self.lines is not None:
            self.lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ranked)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(ranked)
        if self.parquet is None:
            self.parquet = pq.ParquetWriter(self.path, table.schema)
        self.parquet.write_table(table.cast(self.parquet.schema))
