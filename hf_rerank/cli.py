"""The command line: ``hf-rerank simulate | prepare | train | evaluate | rank``.

A user's mistake ends with one line on standard error and exit code 2. Whatever is slow to import is imported by the
command that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hf_rerank.errors import InputError, TrainingStopped, suggestion

RAW_FORMATS = ("prm_public",)
TABLE_FILES = (".jsonl", ".parquet")
RANK_BATCH = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM in training.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = _parser()
        options, others = parser.parse_known_args(arguments)
        if options.command is None:
            parser.print_help()
            return 0
        if others and options.command != "train":
            known = _option_names(options.parser)
            raise InputError(f"unknown argument {others[0]!r} of {options.command}{suggestion(others[0], known)}")
        options.others = others
        options.run(options)
        return 0
    except KeyboardInterrupt as stopped:
        # Training says itself where it stopped, by which signal, and how to go on.
        message = _one_line(stopped) if stopped.args else "stopped by Ctrl-C; finished files are whole"
        print(f"hf-rerank: {message}", file=sys.stderr)
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    except (InputError, TrainingStopped, OSError) as error:
        print(f"hf-rerank: {_one_line(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hf-rerank", description="Re-rankers for recommender systems.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    simulate = commands.add_parser("simulate", help="write simulated lists in the raw format of a public dataset")
    simulate.add_argument("format", choices=RAW_FORMATS)
    simulate.add_argument("--output-dir", required=True, type=Path, metavar="RAW", help="folder for the raw files")
    simulate.add_argument("--lists", required=True, type=int, metavar="N", help="how many lists")
    simulate.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed writes the same bytes")
    simulate.add_argument(
        "--world",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of PRMWorld, such as initial_noise=3",
    )
    simulate.set_defaults(run=_simulate, parser=simulate)

    prepare = commands.add_parser("prepare", help="turn raw files into prepared lists (Parquet)")
    prepare.add_argument("format", choices=RAW_FORMATS)
    prepare.add_argument("--raw-dir", required=True, type=Path, metavar="RAW", help="folder with the raw files")
    prepare.add_argument("--output-dir", required=True, type=Path, metavar="LISTS", help="folder for prepared lists")
    prepare.add_argument(
        "--protocol",
        choices=("ours", "public"),
        default="ours",
        help="ours: every line; public: no line with a null, and a tenth of the rest",
    )
    prepare.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="damaged lines: raise stops at the first and names them; skip leaves them out, in LISTS/rejects.jsonl",
    )
    prepare.add_argument("--json", action="store_true", help="print the report as JSON")
    prepare.set_defaults(run=_prepare, parser=prepare)

    train = commands.add_parser(
        "train",
        help="train a re-ranker",
        epilog="Every option of RerankTrainingArguments is an option here too, such as --num_train_epochs 5, "
        "--learning_rate 0.001, --per_device_train_batch_size 256, --seed 1, "
        "--resume_from_checkpoint last (or auto: that, or a fresh start; or RUN/checkpoint-100).",
    )
    train.add_argument("--model", required=True, metavar="NAME", help="dlcm, dnn, midnn, pear, prm, raise or setrank")
    train.add_argument("--data", required=True, metavar="LISTS", help="folder of prepared lists")
    train.add_argument("--output-dir", required=True, metavar="RUN", help="folder for checkpoints and the model")
    train.add_argument("--preset", metavar="NAME", help="published sizes: paper, librerank-ad or librerank-prm")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the model's config"
    )
    train.add_argument("--plots", action="store_true", help="draw RUN/plots/training.png at every evaluation")
    train.set_defaults(run=_train, parser=train)

    evaluate = commands.add_parser("evaluate", help="measure a trained re-ranker")
    evaluate.add_argument("--model", required=True, metavar="RUN", help="folder or Hub repository of the model")
    evaluate.add_argument("--data", required=True, metavar="LISTS", help="folder of prepared lists")
    evaluate.add_argument("--split", default="test", help="which split (default: test)")
    evaluate.add_argument("--ks", type=int, nargs="+", default=[5, 10], help="cut-offs of the metrics (default: 5 10)")
    evaluate.add_argument(
        "--no-click", choices=("zero", "skip"), default="zero", help="what lists without a click count"
    )
    evaluate.add_argument(
        "--obedience-k", type=int, default=5, metavar="K", help="cut-off of the obedience at the top (default: 5)"
    )
    evaluate.add_argument(
        "--swaps",
        choices=("all", "one"),
        default="all",
        help="measure P2 on all swaps of neighbours, or on one a list (default: all)",
    )
    evaluate.add_argument(
        "--max-steps",
        type=int,
        default=10,
        metavar="N",
        help="how often a ranking is fed back before it counts as not settled; 0: not measured (default: 10)",
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers as JSON")
    evaluate.add_argument(
        "--plots", type=Path, metavar="DIR", help="also draw DIR/obedience.png and, of its training, DIR/training.png"
    )
    evaluate.set_defaults(run=_evaluate, parser=evaluate)

    rank = commands.add_parser("rank", help="rank lists from a file")
    rank.add_argument("--model", required=True, metavar="RUN", help="folder or Hub repository of the model")
    rank.add_argument(
        "--input", required=True, type=Path, metavar="FILE", help="lists, .jsonl or .parquet, a row a list"
    )
    rank.add_argument("--output", required=True, type=Path, metavar="FILE", help="ranked lists, .jsonl or .parquet")
    rank.add_argument("--top-k", type=int, metavar="K", help="items a list (default: all)")
    rank.add_argument("--truncate", action="store_true", help="rank only the first places of lists that are too long")
    rank.set_defaults(run=_rank, parser=rank)
    return parser


def _simulate(options: argparse.Namespace) -> None:
    from dataclasses import fields

    from hf_rerank.data.simulator import PRMWorld, simulate_prm

    parameters, known = _settings("--world", options.world), [field.name for field in fields(PRMWorld)]
    for name in parameters:
        if name not in known:
            raise InputError(f"the simulated world has no parameter {name!r}{suggestion(name, known)}")
    world = PRMWorld(**parameters)
    path = simulate_prm(options.output_dir, options.lists, seed=options.seed, world=world, progress=True)
    print(f"{options.lists:,} lists in {path}, the truth beside it")


def _prepare(options: argparse.Namespace) -> None:
    from hf_rerank.data.prm_public import prepare_prm_public

    try:
        report = prepare_prm_public(
            options.raw_dir, options.output_dir, protocol=options.protocol, on_error=options.on_error
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped by Ctrl-C; the same command goes on from the last whole shard") from None
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    counts = ", ".join(f"{name} {lists:,}" for name, lists in report.lists.items())
    print(f"{report.read:,} lines read; lists kept: {counts}")
    for reason, lists in report.dropped.items():
        print(f"{lists:,} lists dropped: {reason}")
    for kind, lines in sorted(report.rejected.items()):
        print(f"{lines:,} lines rejected: {kind}")
    if report.rejected:
        print(f"rejected lines in {options.output_dir / 'rejects.jsonl'}")
    if report.cut_lists:
        print(
            f"{report.cut_lists:,} lists cut to the longest allowed, "
            f"{report.lost_clicks:,} lost all their clicks by it"
        )
    if report.nulls:
        print(f"{sum(report.nulls.values()):,} missing values kept, in {len(report.nulls)} columns")
    print(f"prepared lists in {options.output_dir}")


def _train(options: argparse.Namespace) -> None:
    arguments = _training_arguments(options)
    from transformers import set_seed

    from hf_rerank.evaluation import evaluate_orders
    from hf_rerank.models.auto import reranker_classes
    from hf_rerank.processing import ListProcessor
    from hf_rerank.tables import results_table
    from hf_rerank.training import PlotCallback, RerankTrainer

    _without_bars_of_a_moment()
    plots = PlotCallback() if options.plots else None
    config_class, model_class = reranker_classes(options.model)
    lists = _prepared_lists(options.data)
    for split in ("train", "validation"):
        if not len(lists[split]):
            raise InputError(f"{options.data} has no list in its {split} split: prepare more lists")
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    overrides = _settings("--set", options.set)
    if options.preset:
        config = config_class.preset(options.preset, processor.schema, **overrides)
    else:
        config = config_class.for_schema(processor.schema, **overrides)
    set_seed(arguments.seed)
    trainer = RerankTrainer(
        model=model_class(config),
        args=arguments,
        train_dataset=lists["train"],
        eval_dataset=lists["validation"],
        processing_class=processor,
        callbacks=[plots] if plots else None,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    metrics = trainer.evaluate(lists["validation"], metric_key_prefix="validation")
    trainer.save_model(arguments.output_dir)
    rows: dict[str, Any] = evaluate_orders(processor, lists["validation"], ks=arguments.metric_ks)
    rows[options.model] = {name.removeprefix("validation_"): value for name, value in metrics.items()}
    print(f"\nOn the validation split:\n{results_table(rows)}\n\nmodel in {arguments.output_dir}")
    if plots and trainer.is_world_process_zero():
        print(f"picture in {plots.drawn}" if plots.drawn else "no picture: the training logged nothing to draw")


def _without_bars_of_a_moment() -> None:
    """transformers draws bars for saving and loading, which take milliseconds here."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _prepared_lists(folder: str) -> Any:
    from hf_rerank.data.loading import load_lists

    if not (Path(folder) / "schema.json").is_file():
        raise InputError(
            f"{folder} is no folder of prepared lists (it has no schema.json): make one with hf-rerank prepare"
        )
    return load_lists(folder)


def _training_arguments(options: argparse.Namespace) -> Any:
    from transformers import HfArgumentParser

    from hf_rerank.training.arguments import RerankTrainingArguments

    class OptionParser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(message)

    parser = OptionParser(RerankTrainingArguments, allow_abbrev=False)  # type: ignore[arg-type]
    arguments, others = parser.parse_args_into_dataclasses(
        ["--output_dir", options.output_dir, *options.others], return_remaining_strings=True
    )
    if others:
        known = [*_option_names(parser), *_option_names(options.parser)]
        raise InputError(f"unknown argument {others[0]!r} of train{suggestion(others[0], known)}")
    return arguments


def _settings(option: str, settings: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE texts as a dictionary: values as JSON where they are, else as text."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise InputError(f"{option} {setting}: expected {option} KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _evaluate(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from hf_rerank.evaluation import evaluate, evaluate_orders
    from hf_rerank.plots import require_matplotlib
    from hf_rerank.reranker import Reranker
    from hf_rerank.tables import obedience_table, results_table
    from hf_rerank.training.results import write_json

    if options.max_steps < 0:
        raise InputError(f"--max-steps is {options.max_steps}: expected at least 0")
    if options.obedience_k < 1:
        raise InputError(f"--obedience-k is {options.obedience_k}: expected at least 1")
    log: list[Any] = []
    if options.plots:
        # Measuring takes long: what stands in the way of the pictures is said before.
        require_matplotlib()
        if options.plots.is_file():
            raise InputError(f"--plots {options.plots} is a file: expected a folder, there or not")
        log = _training_log(options.model)
    _without_bars_of_a_moment()
    reranker = Reranker.from_pretrained(options.model)
    splits = _prepared_lists(options.data)
    if options.split not in splits:
        raise InputError(
            f"{options.data} has no split {options.split!r}: expected one of {', '.join(splits)}"
            f"{suggestion(options.split, splits)}"
        )
    lists, choices = splits[options.split], {"ks": options.ks, "no_click": options.no_click}
    # The truth of simulated lists travels with the lists, not with the model.
    reranker.processor.schema = reranker.processor.schema.replace(
        attraction=splits.schema.attraction, examination=splits.schema.examination
    )
    obedience = {"obedience_k": options.obedience_k, "swaps": options.swaps, "max_steps": options.max_steps}
    rows: dict[str, Any] = evaluate_orders(reranker.processor, lists, **choices)
    with tqdm(total=len(lists), unit="list", delay=1, disable=None) as bar:
        rows["model"] = evaluate(
            reranker.model, reranker.processor, lists, progress=bar.update, **choices, **obedience
        )
    print(f"{results_table(rows)}\n\n{obedience_table(rows['model'])}")
    for name, share in rows["model"]["unknown_share"].items():
        if share:
            print(f"{share:.2%} of {name} unknown")
    if options.json:
        about = {"model": str(options.model), "split": options.split, "obedience": obedience}
        write_json(options.json, {**about, "rows": rows})
    if options.plots:
        _draw(options.plots, options.model, rows["model"], log)


def _training_log(model: str) -> list[Any]:
    """The log in the ``results.json`` of a local model, empty where there is none."""
    path = Path(model) / "results.json"
    if not path.is_file():
        return []
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}; mend or remove it") from None
    training = results.get("training") if isinstance(results, dict) else None
    log = training.get("log") if isinstance(training, dict) else None
    return log if isinstance(log, list) else []


def _draw(folder: Path, model: str, measures: dict[str, Any], log: list[Any]) -> None:
    from hf_rerank.plots import obedience_figure, training_figure

    try:
        obedience_figure(measures, folder / "obedience.png")
        print(f"picture in {folder / 'obedience.png'}")
    except InputError as error:
        print(f"no {folder / 'obedience.png'}: {error}")
    if not log:
        print(f"no {folder / 'training.png'}: {model} has no training log")
        return
    try:
        training_figure(log, folder / "training.png")
        print(f"picture in {folder / 'training.png'}")
    except InputError as error:
        print(f"no {folder / 'training.png'}: {error}")


def _rank(options: argparse.Namespace) -> None:
    for path in (options.input, options.output):
        if path.suffix not in TABLE_FILES:
            raise InputError(f"{path}: expected a file that ends in {' or '.join(TABLE_FILES)}")
    if not options.input.is_file():
        raise InputError(f"no file {options.input}: expected lists, one a row")
    from tqdm import tqdm

    from hf_rerank.processing import EncodingReport
    from hf_rerank.reranker import Reranker

    _without_bars_of_a_moment()
    reranker = Reranker.from_pretrained(options.model)
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


def _option_names(parser: argparse.ArgumentParser) -> list[str]:
    return re.findall(r"--[\w-]+", parser.format_help())


class _Parser(argparse.ArgumentParser):
    """Says mistakes as everything here does, and suggests what was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        known = re.findall(r"[\w-]+", wrong.group(2)) if wrong else []
        raise InputError(message + (suggestion(wrong.group(1), known) if wrong else "") + f"; see {self.prog} --help")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
