"""Fine-tuning: how much does a model trained on many lists help with few lists from another world?

    python scripts/experiments/fine_tuning.py --output-dir RESULTS --seeds 5 --workers 2

Simulates lists of the default world, and fewer of a shifted one: other weights, half of the lists with the items of
the first world and half with items that are unknown to it. PRM is trained on the first; then, on a few lists of the
second, PRM is trained from scratch, and fine-tuned from the first model (``adapt``: new items get rows). For each
number of lists and each way of training, the learning rate is chosen on ``validation``, with a separate seed; the best
epoch of each run is chosen on ``validation`` by NDCG@10. Each run is evaluated once, on ``test`` and ``ranker_train``,
which are not used otherwise. A seed determines the few lists, the weights and the order of batches; runs with the same
seed are paired. RESULTS gets ``first/``, ``second/``, ``runs/*.json``, ``summary.json`` and ``summary.md``. Existing
runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from grid import ENCODER
from runs import finish, mean_and_spread, over_users, paired, per_list, results, train

from hf_rerank.data.simulation import PRMWorld

# The theme of a list counts half as much, prices and crowding twice as much, and match less than quality; the bias
# compensates, so that lists have about as many clicks.
SHIFTED = PRMWorld(
    bias=0.6, theme_weight=2.25, price_weight=1.6, crowding_weight=1.2, quality_weight=0.7, match_weight=0.3
)
NOTHING, TUNED, UNTUNED = "from nothing", "fine-tuned", "not tuned"
TRAINED = {NOTHING: "nothing", TUNED: "tuned"}
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FIRST_RATE = 2e-3
CHOOSING_SEED = 1000
MEASURES = ("ndcg@10", "map@10", "gauc", "expected_clicks", "expected_clicks_share")


def main() -> None:
    options = _options()
    folder, seeds = options.output_dir, list(range(options.seeds))
    simulate(folder, options.first_lists, options.second_lists)
    finish(
        [(_first_path(folder, seed), (seed, options.first_epochs)) for seed in (CHOOSING_SEED, *seeds)],
        train_first,
        options.workers,
    )
    rates = choose_learning_rates(folder, options)
    cells = [(way, few, seed) for seed in seeds for few in options.few for way in TRAINED]
    finish(
        [(_path(folder, *cell), (*cell, rates[cell[0], cell[1]]["chosen"], options.epochs, True)) for cell in cells],
        run,
        options.workers,
    )
    finish([(_path(folder, UNTUNED, 0, seed), (seed, max(options.few))) for seed in seeds], untuned, options.workers)
    summary = summarise(folder, options.few, seeds)
    summary["learning_rates"] = {f"{way}, {few} lists": found for (way, few), found in rates.items()}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = as_markdown(summary)
    (folder / "summary.md").write_text(text)
    print(text)


def simulate(folder: Path, first: int, second: int) -> None:
    """Prepares lists of both worlds in ``folder/first/lists`` and ``folder/second/lists``."""
    from hf_rerank.data.prm_public import prepare_prm_public
    from hf_rerank.data.simulation import simulate_prm

    if (folder / "second" / "lists" / "schema.json").is_file():
        return
    simulate_prm(folder / "first" / "raw", first, seed=1, part=1)
    # The seed draws the items, the part the users: old items with other users, then new items.
    simulate_prm(folder / "second" / "raw", second // 2, seed=1, part=2, world=SHIFTED)
    simulate_prm(folder / "second" / "raw", second - second // 2, seed=2, part=1, world=SHIFTED)
    for name in ("first", "second"):
        prepare_prm_public(folder / name / "raw", folder / name / "lists", progress=False)


def train_first(path: Path, seed: int, epochs: float) -> dict[str, Any]:
    """Trains and saves a model of the first world."""
    from hf_rerank import ListProcessor, load_lists

    lists = load_lists(path.parents[1] / "first" / "lists")
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    trainer = _trained(path, lists, processor, "prm", seed, FIRST_RATE, epochs, 128)
    trainer.save_model(str(path.with_suffix("") / "best"))
    return trainer.results


def choose_learning_rates(folder: Path, options: argparse.Namespace) -> dict[tuple[str, int], Any]:
    """Finds, for each way and number of lists, the learning rate with the best NDCG@10 on validation."""
    wanted = {
        (way, few, rate): folder / "runs" / f"choose-{TRAINED[way]}-{few}-{rate:g}.json"
        for few in options.few
        for way in TRAINED
        for rate in LEARNING_RATES
    }
    finish(
        [(path, (way, few, CHOOSING_SEED, rate, options.epochs, False)) for (way, few, rate), path in wanted.items()],
        run,
        options.workers,
    )
    rates = {}
    for few in options.few:
        for way in TRAINED:
            found = {rate: results([wanted[way, few, rate]])[0]["validation_ndcg@10"] for rate in LEARNING_RATES}
            rates[way, few] = {"chosen": max(found, key=lambda rate: found[rate]), "validation_ndcg@10": found}
    return rates


def run(path: Path, way: str, few: int, seed: int, rate: float, epochs: float, test: bool) -> dict[str, Any]:
    """Trains on a few lists of the second world in one way; with ``test``, also evaluates."""
    from hf_rerank import ListProcessor

    lists = _few_lists(path, few, seed)
    if way == TUNED:
        tuned, report = _adapted(path, lists, seed)
        model, processor = tuned.model, tuned.processor
    else:
        model, processor = "prm", ListProcessor.from_lists(lists["train"], schema=lists.schema)
        report = None
    trainer = _trained(path, lists, processor, model, seed, rate, epochs, 32)
    chosen = {"validation_ndcg@10": trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    if not test:
        return chosen
    added = None if report is None else report.vocabularies["item_id"]["added"]
    return {**trainer.results, **chosen, "new_items": added, "test": _measured(path, trainer.model, processor, lists)}


def untuned(path: Path, seed: int, few: int) -> dict[str, Any]:
    """Evaluates the model of the first world without training: unknown items share the unknown row."""
    lists = _few_lists(path, few, seed)
    tuned, _ = _adapted(path, lists, seed)
    return {"test": _measured(path, tuned.model, tuned.processor, lists)}


def _few_lists(path: Path, few: int, seed: int) -> Any:
    """Returns the second world's lists, with only a few for training."""
    from datasets import concatenate_datasets

    from hf_rerank import load_lists

    lists = load_lists(path.parents[1] / "second" / "lists")
    if len(lists["train"]) < few:
        raise SystemExit(f"only {len(lists['train'])} training lists of the second world: raise --second-lists")
    lists["train"] = lists["train"].shuffle(seed=seed).select(range(few))
    lists["test"] = concatenate_datasets([lists["test"], lists["ranker_train"]])
    return lists


def _adapted(path: Path, lists: Any, seed: int) -> Any:
    from hf_rerank import Reranker, adapt

    first = _first_path(path.parents[1], seed).with_suffix("") / "best"
    return adapt(Reranker.from_pretrained(first), lists["train"], lists.schema)


def _trained(
    path: Path, lists: Any, processor: Any, model: Any, seed: int, rate: float, epochs: float, batch: int
) -> Any:
    return train(
        path.with_suffix(""),
        lists,
        processor,
        model=model,
        seed=seed,
        config={**ENCODER, "hidden_dropout_prob": 0.0},
        principled="none",
        num_train_epochs=epochs,
        learning_rate=rate,
        per_device_train_batch_size=batch,
        save_total_limit=1,
        save_only_model=True,
    )


def _measured(path: Path, model: Any, processor: Any, lists: Any) -> dict[str, Any]:
    from safetensors.numpy import save_file

    from hf_rerank.evaluation import evaluate

    save_file(per_list(model, processor, lists["test"]), path.with_suffix(".safetensors"))
    return evaluate(model, processor, lists["test"], max_steps=0, swaps="one")


def summarise(folder: Path, few: list[int], seeds: list[int]) -> dict[str, Any]:
    """Computes means over seeds, and paired differences."""
    from safetensors.numpy import load_file

    from hf_rerank import ListProcessor
    from hf_rerank.evaluation import evaluate_orders

    lists = _few_lists(_path(folder, NOTHING, few[0], 0), few[0], 0)
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    orders = evaluate_orders(processor, lists["test"])
    users = lists["test"][lists.schema.group][:]
    paths = {UNTUNED: [_path(folder, UNTUNED, 0, seed) for seed in seeds]}
    paths |= {_row(way, n): [_path(folder, way, n, seed) for seed in seeds] for n in few for way in TRAINED}
    found = {row: results(of_row) for row, of_row in paths.items()}
    of_lists = {row: [load_file(path.with_suffix(".safetensors")) for path in paths[row]] for row in paths}
    pairs = [(_row(TUNED, n), other) for n in few for other in (_row(NOTHING, n), UNTUNED)]
    differences = {}
    for one, other in pairs:
        both = list(zip(of_lists[one], of_lists[other], strict=True))
        differences[f"{one} - {other}"] = {
            "over_seeds": {
                name: paired(*([run["test"][name] for run in found[row]] for row in (one, other))) for name in MEASURES
            },
            "over_users": {
                name: over_users(np.mean([a[name] - b[name] for a, b in both], axis=0), users)
                for name in ("ndcg@10", "expected_clicks")
            },
        }
    tuned = found[_row(TUNED, few[0])][0]
    return {
        "seeds": seeds,
        "orders": {name: {m: row[m] for m in MEASURES if m in row} for name, row in orders.items()},
        "rows": {
            row: {name: mean_and_spread([run["test"][name] for run in runs]) for name in MEASURES}
            for row, runs in found.items()
        },
        "differences": differences,
        "new_items": {row: [run["new_items"] for run in found[row]] for row in found if row.startswith(TUNED)},
        "best_step": {row: [run["best_step"] for run in found[row]] for row in found if row != UNTUNED},
        "first_lists": results([_first_path(folder, seeds[0])])[0]["data"]["train"]["lists"],
        "validation_lists": len(lists["validation"]),
        "test_lists": len(lists["test"]),
        "environment": tuned["environment"],
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """Formats two tables: every row, and the differences."""
    lines = [f"| | {' | '.join(MEASURES)} |", f"|---|{'---|' * len(MEASURES)}"]
    for label, row in {"initial order": summary["orders"]["initial"], **summary["rows"]}.items():
        cells = [row.get(name) for name in MEASURES]
        shown = ["" if cell is None else f"{cell['mean'] if isinstance(cell, dict) else cell:.4f}" for cell in cells]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    lines += ["", f"| difference | {' | '.join(MEASURES)} |", f"|---|{'---|' * len(MEASURES)}"]
    for label, found in summary["differences"].items():
        intervals = [found["over_seeds"][name] for name in MEASURES]
        cells = [f"{v['mean']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]" for v in intervals]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _row(way: str, few: int) -> str:
    return f"{way}, {few} lists"


def _first_path(folder: Path, seed: int) -> Path:
    return folder / "runs" / f"first-{seed}.json"


def _path(folder: Path, way: str, few: int, seed: int) -> Path:
    return folder / "runs" / f"{TRAINED.get(way, 'untuned')}-{few}-{seed}.json"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-lists", type=int, default=12_000, help="lists of the first world; 45 %% train")
    parser.add_argument("--second-lists", type=int, default=6_000, help="lists of the second world; 45 %% train")
    parser.add_argument("--few", type=int, nargs="+", default=[300, 1000, 2500], help="lists to fine-tune on")
    parser.add_argument("--first-epochs", type=float, default=8)
    parser.add_argument("--epochs", type=float, default=20, help="epochs on the few lists")
    parser.add_argument("--workers", type=int, default=1, help="processes that train in parallel")
    return parser.parse_args()


if __name__ == "__main__":
    main()
