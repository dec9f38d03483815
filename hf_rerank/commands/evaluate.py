"""``hf-rerank evaluate``: the metrics and the obedience of a trained re-ranker."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import (
    add_revision,
    describe_initial_ranker,
    disable_short_progress_bars,
    lists_folder,
    model_options,
)
from hf_rerank.errors import InputError, suggestion


def add(commands: Any) -> None:
    """Adds the command and its options."""
    evaluate = commands.add_parser("evaluate", help="evaluate a trained re-ranker")
    evaluate.add_argument("--model", required=True, metavar="RUN", help="folder or Hub repository of the model")
    add_revision(evaluate)
    evaluate.add_argument("--data", required=True, metavar="LISTS", help="folder or Hub repository of prepared lists")
    evaluate.add_argument("--split", default="test", help="split to evaluate on (default: test)")
    evaluate.add_argument("--ks", type=int, nargs="+", default=[5, 10], help="cut-offs of the metrics (default: 5 10)")
    evaluate.add_argument(
        "--no-click", choices=("zero", "skip"), default="zero", help="how lists without a click count (default: zero)"
    )
    evaluate.add_argument(
        "--gain",
        choices=("exponential", "linear"),
        default="exponential",
        help="gain of a grade y in NDCG: 2^y - 1, or y, which suits grades above about 10 (default: exponential)",
    )
    evaluate.add_argument(
        "--click-above",
        type=float,
        metavar="LABEL",
        help="a click is a label above this number, in all metrics but NDCG (default: 0; fractional labels make these "
        "metrics nan)",
    )
    evaluate.add_argument(
        "--obedience-k", type=int, default=5, metavar="K", help="cut-off of the obedience at the top (default: 5)"
    )
    evaluate.add_argument(
        "--swaps",
        choices=("all", "one"),
        default="all",
        help="measure P2 on all adjacent swaps (64 of them in lists above 65 items), or on one per list "
        "(default: all)",
    )
    evaluate.add_argument(
        "--max-steps",
        type=int,
        default=10,
        metavar="N",
        help="feed a ranking back at most N times before it counts as not settled; 0: not measured (default: 10)",
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers as JSON")
    evaluate.add_argument(
        "--trec-run",
        type=Path,
        metavar="FILE",
        help="also write the rankings as a TREC run, for other tools and for `hf-rerank compare --scores`",
    )
    evaluate.add_argument(
        "--add-to-results",
        action="store_true",
        help="also write the measures of the model and of the initial order into the model's results.json, from which "
        "`hf-rerank push` makes the card",
    )
    evaluate.add_argument(
        "--plots", type=Path, metavar="DIR", help="also draw DIR/obedience.png and DIR/training.png (its training log)"
    )
    evaluate.set_defaults(run=run, parser=evaluate)


def run(options: argparse.Namespace) -> None:
    """Evaluates, prints, draws."""
    from tqdm import tqdm

    from hf_rerank.data.loading import load_lists
    from hf_rerank.evaluation import evaluate, evaluate_orders
    from hf_rerank.evaluation.plots import require_matplotlib
    from hf_rerank.evaluation.saved_results import read_saved_results
    from hf_rerank.evaluation.tables import obedience_table, results_table
    from hf_rerank.inference.reranker import Reranker
    from hf_rerank.storage import InputFiles, note_model_files, write_json
    from hf_rerank.storage.hub_download import find_weights_folder

    if options.max_steps < 0:
        raise InputError(f"--max-steps is {options.max_steps}: expected at least 0")
    if options.obedience_k < 1:
        raise InputError(f"--obedience-k is {options.obedience_k}: expected at least 1")
    at = model_options(options.model, options.revision)
    for output in filter(None, (options.json, options.trec_run)):
        _refuse_over_input(output, options.model, options.data)
    log: list[Any] = []
    if options.plots:
        # Evaluation is slow: problems with the figures are reported first.
        require_matplotlib()
        if options.plots.is_file():
            raise InputError(f"--plots {options.plots} is a file: expected a folder, existing or not")
        log = _read_training_log(options.model)
    if options.add_to_results:
        read_saved_results(options.model)
    find_weights_folder(options.model, **at)  # refuses an exported graph
    disable_short_progress_bars()
    folder = lists_folder(options.data)
    inputs = InputFiles(
        [*note_model_files(options.model).paths, *(path for path in folder.iterdir() if path.is_file())]
    )
    reranker = Reranker.from_pretrained(options.model, **at)
    splits = load_lists(folder)
    if options.split not in splits:
        raise InputError(
            f"{options.data} has no split {options.split!r}: expected one of {', '.join(splits)}"
            f"{suggestion(options.split, splits)}"
        )
    lists = splits[options.split]
    choices = {name: getattr(options, name) for name in ("ks", "no_click", "gain", "click_above")}
    # The initial order and the ground truth of simulated lists belong to the lists, not to the model.
    reranker.processor.schema = reranker.processor.schema.replace(
        position=splits.schema.position,
        attraction=splits.schema.attraction,
        examination=splits.schema.examination,
        cut_label=splits.schema.cut_label,
    )
    obedience = {"obedience_k": options.obedience_k, "swaps": options.swaps, "max_steps": options.max_steps}
    with inputs.require_unchanged(), tqdm(total=len(lists), unit="list", delay=1, disable=None) as bar:
        rows: dict[str, Any] = evaluate_orders(reranker.processor, lists, **choices)
        rows["model"] = evaluate(
            reranker.model, reranker.processor, lists, progress=bar.update, **choices, **obedience
        )
    print(f"{results_table(rows)}\n\n{obedience_table(rows['model'])}")
    if rows["model"]["truncated_lists"]:
        print(
            f"{rows['model']['truncated_lists']:,} lists are truncated; the metrics count the "
            f"{rows['model']['clicks_cut']:,} clicks on the items cut from them"
        )
    for name, share in rows["model"]["unknown_share"].items():
        if share:
            print(f"{share:.2%} of {name} unknown")
    if options.json:
        about = {"model": options.model, **at, "split": options.split, "obedience": obedience}
        write_json(options.json, {**about, **describe_initial_ranker(folder), "rows": rows})
    if options.trec_run:
        _write_trec_run(options, reranker, lists)
    if options.add_to_results:
        _add_to_results(options, rows, obedience, lists, reranker.processor.schema)
    if options.plots:
        _draw(options.plots, options.model, rows["model"], log)


def _write_trec_run(options: argparse.Namespace, reranker: Any, lists: Any) -> None:
    import numpy as np

    from hf_rerank.evaluation.score_files import NamedLists, write_trec_run

    named = NamedLists.from_dataset(lists, reranker.processor.schema)
    scores = [
        found for start in range(0, len(lists), 256) for found in reranker.predict(_select_rows(lists, start, 256))
    ]
    orders = [np.argsort(-of_list, kind="stable").tolist() for of_list in scores]
    name = "-".join(Path(options.model).resolve().name.split()) or "model"
    write_trec_run(options.trec_run, named, orders, scores, name)
    print(f"TREC run in {options.trec_run}")


def _select_rows(lists: Any, start: int, count: int) -> list[dict[str, Any]]:
    columns = lists[start : start + count]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _refuse_over_input(output: Path, model: str, lists: str) -> None:
    """Refuses an output that is a file of the model, or lies among the lists."""
    from hf_rerank.storage import list_saved_files, refuse_output_over_input

    for folder in filter(Path.is_dir, (Path(model), Path(lists))):
        refuse_output_over_input(output, [folder] if folder == Path(lists) else list_saved_files(folder))


def _read_training_log(model: str) -> list[Any]:
    """Reads the log in the ``results.json`` of a local model; empty if there is none."""
    from hf_rerank.evaluation.saved_results import RESULTS
    from hf_rerank.storage import read_json

    path = Path(model) / RESULTS
    training = read_json(path).get("training") if path.is_file() else None
    log = training.get("log") if isinstance(training, dict) else None
    return log if isinstance(log, list) else []


def _add_to_results(
    options: argparse.Namespace, rows: dict[str, Any], obedience: dict[str, Any], lists: Any, schema: Any
) -> None:
    from hf_rerank.evaluation.results import data_identity
    from hf_rerank.evaluation.saved_results import RESULTS, add_evaluation

    became = add_evaluation(
        options.model,
        options.split,
        measures=rows["model"],
        initial=rows["initial"],
        settings={**rows["model"]["settings"], **obedience},
        data=data_identity(lists, schema),
    )
    says = {
        "added": "added to {}",
        "replaced": "replaced in {}, which had other numbers",
        "unchanged": "already in {}, with the same numbers",
    }
    print(f"{options.split}: {says[became].format(Path(options.model) / RESULTS)}")


def _draw(folder: Path, model: str, measures: dict[str, Any], log: list[Any]) -> None:
    from hf_rerank.evaluation.plots import plot_obedience, plot_training

    try:
        plot_obedience(measures, folder / "obedience.png")
        print(f"figure in {folder / 'obedience.png'}")
    except InputError as error:
        print(f"no {folder / 'obedience.png'}: {error}")
    if not log:
        print(f"no {folder / 'training.png'}: {model} has no training log")
        return
    try:
        plot_training(log, folder / "training.png")
        print(f"figure in {folder / 'training.png'}")
    except InputError as error:
        print(f"no {folder / 'training.png'}: {error}")
