"""Trains a re-ranker of each kind on simulated lists, writes its card, and pushes models and lists to the Hub.

    scripts/publish --namespace NAME [--only NAME ...] [--output-dir DIR] [--dry-run]

A model is one run of ``experiments/grid.py``: the arm with the library's default principles, with seed 0. Its output
folder contains the files that a push uploads: config, weights, processor, results, card and manifest. Existing folders
are not trained again. The numbers over several seeds in its card come from the grid's runs, which must exist.

Repositories are created before anything is trained, so that a missing token, a name that is taken or a missing network
is reported at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "experiments"))

from grid import DEFAULT, MODELS, Run, train_run
from worlds import prepare_world

from hf_rerank.errors import InputError, suggestion
from model_cards import DATASETS, index_text, write_card

CELLS = Path(__file__).parent / "experiments" / "results" / "grid" / "cells"
SEED = 0


@dataclass(frozen=True)
class Published:
    """One repository: a model, or the lists of a data set.

    Attributes:
        dataset: A key of ``model_cards.DATASETS``.
        model: A key of ``grid.MODELS``. None: the lists.
    """

    dataset: str
    model: str | None = None

    @property
    def name(self) -> str:
        return self.dataset if self.model is None else f"{self.dataset}-{self.model}"

    @property
    def run(self) -> Run:
        """Returns the run of the grid that trains the model."""
        dataset = DATASETS[self.dataset]
        return Run(dataset.world, dataset.length, str(self.model), DEFAULT, SEED)


ALL = {
    published.name: published
    for dataset in DATASETS
    for published in (Published(dataset), *(Published(dataset, model) for model in MODELS))
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares every folder and pushes it."""
    options = _options(arguments)
    try:
        _publish(options)
    except InputError as error:
        raise SystemExit(f"publish: {error}") from None


def _publish(options: argparse.Namespace) -> None:
    import torch

    from hf_rerank.data.push_lists import push_lists
    from hf_rerank.hub import push_model
    from hf_rerank.storage.hub_repository import open_repository

    torch.set_num_threads(1)  # with more threads, sums would differ from those of the grid's runs
    chosen = _chosen(options.only)
    output, lists_dir = options.output_dir, options.lists_dir or options.output_dir / "lists"
    if not options.dry_run:
        for published in chosen:
            kind = "dataset" if published.model is None else "model"
            open_repository(f"{options.namespace}/{published.name}", kind, private=options.private or None)
    for published in chosen:
        repo_id = f"{options.namespace}/{published.name}"
        if published.model is None:
            folder = prepare_world(lists_dir, DATASETS[published.dataset].world)
        else:
            folder = output / published.name
            if not is_finished(folder):
                train_model(published.run, lists_dir, folder, options.cells)
            write_card(folder, repo_id, published.dataset, published.model, options.cells)
        if options.dry_run:
            print(f"would push {repo_id}: {_size(folder)} in {folder}", flush=True)
        elif published.model is None:
            print(f"pushed: {push_lists(folder, repo_id, private=options.private or None).commit_url}", flush=True)
        else:
            print(f"pushed: {push_model(folder, repo_id, private=options.private or None).commit_url}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / "README.md").write_text(index_text(output), encoding="utf-8")


def train_model(run: Run, lists_dir: Path, folder: Path, cells: Path) -> None:
    """Trains one run and writes the files that a push uploads, except the card, into a folder.

    Raises:
        InputError: The grid's run, which contains the learning rate, is missing.
    """
    from hf_rerank.evaluation import evaluate_orders
    from hf_rerank.hub.push import files_to_push
    from hf_rerank.storage import save_files

    made = cells / f"{run.name}.json"
    if not made.is_file():
        raise InputError(
            f"there is no {made}, which contains the learning rate and the results over seeds: make it with "
            "scripts/experiments/grid.py, or give --cells"
        )
    rate = json.loads(made.read_text(encoding="utf-8"))["learning_rate"]
    with tempfile.TemporaryDirectory() as name:
        saved = Path(name) / run.name
        trainer, lists = train_run(run, lists_dir, Path(name), rate)
        orders = {}
        for split in ("validation", "test"):
            trainer.evaluate(lists.splits[split], metric_key_prefix=split)
            found = evaluate_orders(trainer.processor, lists.splits[split])
            orders[split] = {order: _numbers(found[order]) for order in ("initial", "true_attraction")}
        trainer.results["orders"] = orders
        trainer.results["example"] = _example(trainer, lists)
        trainer.save_model(str(saved))
        with save_files(folder) as staging:
            for file, content in files_to_push(saved).items():
                (staging / file).write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _example(trainer: Any, lists: Any) -> dict[str, Any]:
    """Returns the first test list without labels and ground truth, and its scores, for checking a loaded model."""
    import torch

    schema = lists.schema
    columns = [feature.name for feature in (*schema.items, *schema.user, *schema.history)]
    row = lists.splits["test"][0]
    row = {name: row[name] for name in (*columns, schema.position)}
    with torch.no_grad():
        scores = trainer.model.eval()(**trainer.processor([row])).logits[0]
    return {"list": row, "scores": scores.tolist()}


def is_finished(folder: Path) -> bool:
    """Whether a folder contains all saved files, undamaged."""
    from hf_rerank.storage import verify

    try:
        return folder.is_dir() and verify(folder, lambda _: True, "train it again") is not None
    except InputError:
        return False


def _numbers(measured: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if isinstance(value, int | float)}


def _size(folder: Path) -> str:
    files = [path for path in folder.glob("[!.]*") if path.is_file()]
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB"


def _chosen(only: Sequence[str] | None) -> list[Published]:
    for name in only or ():
        if name not in ALL:
            raise InputError(f"--only {name}: expected names among {', '.join(ALL)}{suggestion(name, ALL)}")
    return [published for name, published in ALL.items() if not only or name in only]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--namespace", required=True, metavar="NAME", help="user or organization on the Hub")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these models or lists (default: all)")
    parser.add_argument("--output-dir", type=Path, default=Path("published"), metavar="DIR", help="a folder per model")
    parser.add_argument("--lists-dir", type=Path, metavar="DIR", help="simulated lists (default: OUTPUT-DIR/lists)")
    parser.add_argument("--cells", type=Path, default=CELLS, metavar="DIR", help="folder of the grid's runs")
    parser.add_argument("--private", action="store_true", help="create private repositories")
    parser.add_argument("--dry-run", action="store_true", help="prepare all folders, and print what would be pushed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
