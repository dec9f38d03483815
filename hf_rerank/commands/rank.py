"""``hf-rerank rank``: ranks lists from files in bounded memory, with a model or (without torch) an exported graph."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import add_revision, disable_short_progress_bars, model_options
from hf_rerank.commands.reading import add_reader_options, reader_options
from hf_rerank.errors import InputError

RANK_BATCH = 512


def add(commands: Any) -> None:
    """Adds the command and its options."""
    rank = commands.add_parser("rank", help="rank lists from a file")
    rank.add_argument(
        "--model",
        required=True,
        metavar="RUN",
        help="folder or Hub repository of the model, or of its hf-rerank export",
    )
    add_revision(rank)
    rank.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="FILE",
        help="lists, in any format that prepare own reads, or JSON with one dict per item under the key items",
    )
    rank.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="ranked lists: .jsonl, .parquet or .arrow (one row per list), .csv or .tsv (one row per item)",
    )
    rank.add_argument("--top-k", type=int, metavar="K", help="items per list (default: all)")
    rank.add_argument(
        "--truncate", action="store_true", help="rank only the first positions of lists that are too long"
    )
    add_reader_options(rank)
    rank.set_defaults(run=run, parser=rank)


def run(options: argparse.Namespace) -> None:
    """Ranks."""
    from hf_rerank.data.custom.files import find_list_files, note_local_inputs
    from hf_rerank.data.custom.results_file import open_results_file, parse_format
    from hf_rerank.storage.inputs import refuse_output_over_input

    parse_format(options.output)
    files = find_list_files(options.input)
    folders = [path for path in options.input if Path(path).is_dir()]  # output in there would be read by a rerun
    refuse_output_over_input(options.output, [*(file.path for file in files if not file.is_url), *folders])
    at = model_options(options.model, options.revision)
    from tqdm import tqdm

    from hf_rerank.data.custom.own_files import EMPTY_LISTS
    from hf_rerank.processing import EncodingReport

    reranker = _load(options.model, at)
    report, counts = EncodingReport(), dict[str, int]()
    bar = tqdm(unit="list", delay=1, disable=None)
    with open_results_file(options.output) as write, bar, note_local_inputs(files).require_unchanged():
        number = 0
        for rows in _read_batches(files, reranker.processor, reader_options(options), counts):
            ranked, met = _rank_batch(reranker, rows, number, options)
            write(ranked)
            report.add(met)
            number += len(rows)
            bar.update(len(rows))
        if not number:
            raise InputError(f"{files[0].path} holds no lists: expected at least one row")
    if counts.get(EMPTY_LISTS):
        print(f"{counts[EMPTY_LISTS]:,} lists without items left out")
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
    for sentence in reranker.processor.describe_drift(report):
        print(f"warning: {sentence}", file=sys.stderr)


def _load(source: str, at: dict[str, Any]) -> Any:
    from hf_rerank.inference.reranker import Reranker
    from hf_rerank.processing.processor import CONFIG_FILE
    from hf_rerank.storage.hub_download import holds_only_a_graph, pin_commit

    at = pin_commit(source, CONFIG_FILE, **at)
    if not holds_only_a_graph(source, **at):  # a graph needs no transformers, which this would import
        disable_short_progress_bars()
    return Reranker.from_pretrained(source, **at)


def _rank_batch(reranker: Any, rows: list[dict[str, Any]], number: int, options: argparse.Namespace) -> Any:
    try:
        return reranker.rerank(rows, options.top_k, options.truncate, with_report=True, batch_size=RANK_BATCH)
    except InputError as error:
        raise InputError(f"{options.input[0]}, lists from {number}: {error}") from None


def _holds_item_dicts(file: Any, schema: Any) -> bool:
    """Whether the first list of a file is ``{"items": [{...}, ...], ...}``, as ``Reranker.rerank`` accepts it."""
    from hf_rerank.data.custom.json_lines import read_objects
    from hf_rerank.processing.rows import holds_items

    first = next((rows[0] for rows in read_objects(file) if rows), {}) if file.kind == "json" else {}
    return holds_items(first, schema)


def _read_item_dicts(files: list[Any], counts: dict[str, int]) -> Iterator[list[dict[str, Any]]]:
    """Yields lists of item dicts in batches, without lists that have no items."""
    from hf_rerank.data.custom.json_lines import read_objects
    from hf_rerank.data.custom.own_files import EMPTY_LISTS
    from hf_rerank.processing.rows import ITEMS

    for file in files:
        for rows in read_objects(file):
            kept = [row for row in rows if row.get(ITEMS) != []]
            counts[EMPTY_LISTS] = counts.get(EMPTY_LISTS, 0) + len(rows) - len(kept)
            for start in range(0, len(kept), RANK_BATCH):
                yield kept[start : start + RANK_BATCH]


def _read_batches(
    files: list[Any], processor: Any, options: Any, counts: dict[str, int]
) -> Iterator[list[dict[str, Any]]]:
    """Yields rows of files in batches, with ids of the types that the processor was fitted on."""
    from hf_rerank.data.custom.own_datasets import read_tables
    from hf_rerank.data.custom.own_files import OwnFiles
    from hf_rerank.processing.vocabularies import TableVocabulary

    schema = processor.schema
    in_dicts = [_holds_item_dicts(file, schema) for file in files]
    if any(in_dicts):
        if not all(in_dicts):
            raise InputError(
                f"{files[in_dicts.index(True)].path} has one dict per item (key 'items'), and "
                f"{files[in_dicts.index(False)].path} has not: give all files the same form"
            )
        yield from _read_item_dicts(files, counts)
        return
    known = {
        name: v.is_text for name, v in processor.vocabularies.items() if isinstance(v, TableVocabulary) and len(v)
    }
    known |= {f.name: known[f.shares] for f in schema.history if getattr(f, "shares", None) in known}
    own = OwnFiles(files, schema, options, labels=False, text_ids=known)
    own.scan()
    needed = {feature.name for feature in (*schema.items, *schema.user, *schema.history)}
    needed |= {schema.position_column, schema.initial_score, schema.list_id, schema.id}
    for _, table in read_tables(own, counts):
        chosen = table.select([name for name in table.column_names if name in needed])
        for batch in chosen.to_batches(max_chunksize=RANK_BATCH):
            yield batch.to_pylist()
