"""The cards of the published models: each is one run of the grid, shown with the grid's results over seeds.

``write_card`` adds the part ``experiment`` to the ``results.json`` of a model's folder and writes its ``README.md``;
``index_text`` makes the table of all models. Nothing is trained here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grid import DEFAULT, MODELS
from questions import PRIMARY, difference
from runs import mean_and_spread
from worlds import WORLDS

from hf_rerank.errors import InputError
from hf_rerank.evaluation.comparing import Interval

EXPERIMENTS = "https://github.com/hf-rerank/hf-rerank/blob/main/scripts/experiments/README.md#principled-learning"
# Arm of the grid -> its name in tables.
ARMS = {"none": "without principles", DEFAULT: "with", "no_order": "without order"}
MEASURES = (
    *("expected_clicks", "expected_clicks_share", "ndcg@10", "auc", "gauc", "map@10"),
    *("p1_obedience@5", "p1_item_obedience", "p2_obedience@5", "p2_item_obedience", "score_spread"),
)
COMPARED = {
    (DEFAULT, "initial"): "with the principles, against the initial order",
    (DEFAULT, "none"): "with the principles, against without",
    ("no_order", "none"): "without order, against without principles",
}


@dataclass(frozen=True)
class Dataset:
    """Simulated lists on which models are published.

    Attributes:
        world: A key of ``worlds.WORLDS``.
        length: Maximum number of items per list.
        title: Name of the lists.
        ranker: The LambdaMART that made the initial order.
    """

    world: str
    length: int
    title: str
    ranker: str


# Identifier of the lists, the prefix of the names of their models.
DATASETS = {
    "prm_public_simulated": Dataset("trained", 30, "simulated PRM Public", "a moderate LambdaMART"),
    "ad_simulated": Dataset("ad_trained", 10, "simulated Ad", "a strong LambdaMART"),
}


def write_card(folder: Path, repo_id: str, name: str, model: str, cells: Path) -> None:
    """Adds the measurements over seeds to the results in a folder, and writes its card.

    Args:
        folder: Folder of the model, as filled by ``publish_models.train_model``.
        repo_id: Title of the card, and the repository that its code loads.
        name: A key of ``DATASETS``.
        model: A key of ``grid.MODELS``.
        cells: Folder of the grid's runs.
    """
    from hf_rerank.hub import model_card
    from hf_rerank.storage import format_json, read_json, replace_file, write_file

    dataset = DATASETS[name]
    results = read_json(folder / "results.json")
    results["experiment"] = experiment_of(dataset, model, cells, results)
    replace_file(folder, "results.json", lambda _: format_json(results).encode())
    card = model_card(
        repo_id,
        results,
        introduction="\n".join(_claims(dataset, model, results["experiment"])),
        experiment="\n".join(_section(dataset, results)),
    )
    write_file(folder / "README.md", card)


def experiment_of(dataset: Dataset, model: str, cells: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Summarizes the runs of a model over seeds, and compares the run of ``results`` with the grid's run of its seed.

    Returns:
        ``arms``: arm -> measure -> mean, standard deviation and values, and its ``seeds``; ``differences``: ``"arm -
        base"`` -> measure -> interval over seeds, in percent of the base, for pairs with at least two seeds;
        ``repeat``: the expected clicks of this run, and of the grid's run with the same seed.

    Raises:
        InputError: There are no runs with the principles, or none without.
    """
    arms: dict[str, dict[int, Any]] = {}
    for path in sorted(cells.glob(f"{dataset.world}-{dataset.length}-{model}-*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        if cell["arm"] in ARMS:
            arms.setdefault(cell["arm"], {})[cell["seed"]] = cell
    for arm in ("none", DEFAULT):
        if arm not in arms:
            raise InputError(
                f"{cells} has no run of {model} with the arm {arm} in {dataset.world}: make it with grid.py"
            )
    trained = arms[DEFAULT]
    both = {**arms, "initial": {seed: {"test": cell["initial"]} for seed, cell in trained.items()}}
    compared = {
        f"{arm} - {base}": {measure: difference(both, arm, base, measure) for measure in (PRIMARY, "ndcg@10")}
        for arm, base in COMPARED
    }
    seed = results["training_arguments"]["seed"]
    here, there = results["evaluations"]["test"][f"test_{PRIMARY}"], trained[seed]["test"][PRIMARY]
    return {
        "world": dataset.world,
        "arms": {
            arm: {
                "seeds": sorted(arms[arm]),
                **{
                    measure: mean_and_spread([cell["test"][measure] for _, cell in sorted(arms[arm].items())])
                    for measure in MEASURES
                },
            }
            for arm in ARMS
            if arm in arms
        },
        "differences": {
            name: {measure: vars(interval) for measure, interval in found.items() if interval is not None}
            for name, found in compared.items()
            if any(found.values())
        },
        "repeat": {"this_run": here, "grid": there, "relative_difference": here / there - 1},
    }


def _claims(dataset: Dataset, model: str, experiment: Mapping[str, Any]) -> Iterator[str]:
    """Yields three lines: the model, its gain, the effect of the principles."""
    from hf_rerank.hub.papers import PAPERS

    paper, arms = PAPERS[f"rerank_{model}"], experiment["arms"]
    yield (
        f'- {paper.name}, {paper.idea}, trained with the library\'s default, `principled="{DEFAULT}"`, on lists of '
        f"{dataset.title}."
    )
    gained, changed = (_change(experiment, f"{DEFAULT} - {base}") for base in ("initial", "none"))
    yield f"- True expected clicks against the initial order, that of {dataset.ranker} trained on clicks: {gained}."
    before, after = (arms[arm]["p1_obedience@5"]["mean"] for arm in ("none", DEFAULT))
    yield (
        f"- What the principles changed in them: {changed}. Fed its own output, the first 5 stay in {after:.0%} of "
        f"the lists instead of {before:.0%}."
    )


def _change(experiment: Mapping[str, Any], name: str) -> str:
    found = experiment["differences"].get(name, {}).get(PRIMARY)
    if found is None:
        return "not known, of one seed"
    interval = Interval(**found)
    unclear = "" if interval.low > 0 or interval.high < 0 else ", which may be chance"
    seeds = f"95 % t-interval over {interval.count} seeds"
    return f"{interval.mean:+.2f} % [{interval.low:+.2f}, {interval.high:+.2f}]{unclear} ({seeds})"


def _section(dataset: Dataset, results: Mapping[str, Any]) -> Iterator[str]:
    """Yields the protocol and two tables: every arm, and the differences."""
    experiment, arguments = results["experiment"], results["training_arguments"]
    arms, orders = experiment["arms"], results["orders"]["test"]
    yield "## Over several seeds"
    yield ""
    without = ", and again without the initial order, where P1 and P2 hold by construction"
    if results["model"]["model_type"] == "rerank_dlcm":
        without = ", and again with a fixed random order in place of the initial one, since DLCM must read an order"
    yield (
        f"The weights here are those of seed {arguments['seed']}. The same training was repeated with other seeds, "
        f"and without the principles{without if 'no_order' in arms else ''}."
    )
    yield ""
    yield (
        f"- Lists: {WORLDS[dataset.world][1]:,} of {dataset.title}, simulated with seed 0; at most {dataset.length} "
        f"items, the first in the initial order."
    )
    yield (
        f"- Initial order: that of {dataset.ranker} (`hf-rerank initial-rank --quality {WORLDS[dataset.world][2]}`), "
        "trained on the clicks of lists set aside for it (`ranker_train`), which no re-ranker sees."
    )
    yield (
        f"- Learning rate {arguments['learning_rate']:g}, chosen on the validation lists without the principles and "
        "with a seed of its own; the best epoch by NDCG@10 on the validation lists; test lists measured once a run."
    )
    yield ""
    shown = [arm for arm in ARMS if arm in arms]
    yield f"| test lists | initial order | {' | '.join(ARMS[arm] for arm in shown)} | oracle |"
    yield f"|{'---|' * (len(shown) + 3)}"
    yield f"| seeds |  | {' | '.join(str(len(arms[arm]['seeds'])) for arm in shown)} |  |"
    for measure in MEASURES:
        ends = [
            f"{orders[order][measure]:.4f}" if measure in orders[order] else ""
            for order in ("initial", "true_attraction")
        ]
        found = [arms[arm][measure] for arm in shown]
        means = [f"{value['mean']:.4f} ± {value['std']:.4f}" for value in found]
        yield f"| {measure} | {' | '.join([ends[0], *means, ends[1]])} |"
    yield ""
    yield "Mean ± standard deviation over seeds; the oracle sorts by the true attraction."
    yield ""
    if experiment["differences"]:
        yield "| change, paired by seed, with its 95 % t-interval over seeds | expected clicks, % | NDCG@10, % |"
        yield "|---|---|---|"
    for (arm, base), words in COMPARED.items():
        found = experiment["differences"].get(f"{arm} - {base}")
        if found is not None:
            yield f"| {words} | {' | '.join(_cell(found[measure]) for measure in (PRIMARY, 'ndcg@10'))} |"
    yield ""
    yield f"What the principles change in other models and initial orders, and why: [experiments]({EXPERIMENTS})."


def _cell(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


INTRODUCTION = f"""# Model cards

A small trained re-ranker of each kind for simulated lists, with the library's default, `principled="{DEFAULT}"`. Each
folder holds what a push to the Hub sends: weights, processor, results over seeds, and a card. From a checkout:

```python
from hf_rerank import Reranker

reranker = Reranker.from_pretrained("model_cards/prm_public_simulated-prm")
```

This command makes the folder again; models whose folder is there are not trained again, only their cards are written:

```bash
scripts/publish --namespace model_cards --output-dir model_cards --lists-dir lists --dry-run
```

Expected clicks are the true ones of the test lists, means over seeds; changes are in percent, paired by seed, with
95 % t-intervals. P1@5: share of lists whose first 5 stay when the model is fed its own output. The tables are made of
the runs of [the grid](../scripts/experiments/README.md#principled-learning)."""


def index_text(folder: Path) -> str:
    """Returns the README.md for the folder of all models: a table per data set, a row per model with a card."""
    lines, differences = [INTRODUCTION], [0.0]
    heads = ["model", "parameters", "kB", "seeds", "initial order", *ARMS.values()]
    heads += ["gain over the initial order, %", "by the principles, %", "P1@5"]
    for name, dataset in DATASETS.items():
        lines += ["", f"## {dataset.title[0].upper()}{dataset.title[1:]}", ""]
        lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for model in MODELS:
            if not (folder / f"{name}-{model}" / "README.md").is_file():
                continue
            results = json.loads((folder / f"{name}-{model}" / "results.json").read_text(encoding="utf-8"))
            lines.append(_index_row(folder / f"{name}-{model}", model, results))
            differences.append(abs(results["experiment"]["repeat"]["relative_difference"]))
    lines += [
        "",
        "The weights are those of seed 0, trained apart from the grid's runs. Largest relative difference of their",
        f"expected clicks from those of the grid's run of the same model and seed: {max(differences):.1g}.",
    ]
    return "\n".join(lines) + "\n"


def _index_row(folder: Path, model: str, results: Mapping[str, Any]) -> str:
    from hf_rerank.hub.papers import PAPERS

    arms, differences = results["experiment"]["arms"], results["experiment"]["differences"]
    size = sum(path.stat().st_size for path in folder.glob("[!.]*"))
    cells = [f"[{PAPERS[f'rerank_{model}'].name}]({folder.name}/README.md)", f"{results['parameters']:,}"]
    cells += [f"{size / 1000:.0f}", str(len(arms[DEFAULT]["seeds"]))]
    cells.append(f"{results['orders']['test']['initial'][PRIMARY]:.4f}")
    cells += [f"{arms[arm][PRIMARY]['mean']:.4f}" if arm in arms else "" for arm in ARMS]
    for base in ("initial", "none"):
        name = f"{DEFAULT} - {base}"
        cells.append(_cell(differences[name][PRIMARY]) if name in differences else "")
    cells.append(" to ".join(f"{arms[arm]['p1_obedience@5']['mean']:.2f}" for arm in ("none", DEFAULT)))
    return f"| {' | '.join(cells)} |"
