"""Writes the card of every re-ranker in the committed summaries of ``six_rerankers``; nothing is trained.

    python scripts/model_cards.py --output-dir model_cards

The folder gets ``<dataset>-<model>/README.md`` and ``results.json`` (the summary, cut to that model), and beside them
the figure of each experiment, which its cards show, and an index, ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "experiments" / "results"
# Parts of a summary that have an entry a model, and parts that all models share.
OF_EACH = ("changes", "parameters", "models", "learning_rates")
SHARED = ("seeds", "objectives", "orders", "training", "data", "settings", "environment")
OF_NEWER = ("schema", "format", "simulated_lists")


@dataclass(frozen=True)
class Experiment:
    """Runs of all models on lists of one format.

    Attributes:
        folder: Under ``experiments/results``.
        format: Option of ``six_rerankers``.
        dataset: Identifier of the lists, with which the names of the cards begin.
        title: Their name.
    """

    folder: str
    format: str
    dataset: str
    title: str

    @property
    def figure(self) -> str:
        """Its name in the folder of the cards."""
        return f"{self.dataset}.png"

    def summary(self) -> dict[str, Any]:
        """All that was measured."""
        return json.loads((RESULTS / self.folder / "summary.json").read_text(encoding="utf-8"))


EXPERIMENTS = (
    Experiment("six_rerankers", "prm_public", "prm_public_simulated", "PRM Public, simulated"),
    Experiment("six_rerankers_ad", "ad", "ad_simulated", "Ad, simulated"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    write_cards(parser.parse_args().output_dir)


def write_cards(folder: Path) -> None:
    """Writes the cards and results of all models, the figures and the index."""
    from hf_rerank.storage import write_json

    index = [INTRODUCTION]
    for experiment in EXPERIMENTS:
        whole = experiment.summary()
        index += ["", f"## {experiment.title}", "", *index_of(experiment, whole)]
        for model in whole["changes"]:
            summary, name = of_one_model(whole, model), f"{experiment.dataset}-{model}"
            write_json(folder / name / "results.json", summary)
            (folder / name / "README.md").write_text(card(experiment, summary, model, name), encoding="utf-8")
        shutil.copyfile(RESULTS / experiment.folder / "six_rerankers.png", folder / experiment.figure)
    (folder / "README.md").write_text("\n".join(index) + "\n", encoding="utf-8")


def of_one_model(summary: dict[str, Any], model: str) -> dict[str, Any]:
    """What a summary says of one model, laid out as the whole."""
    return {
        **{part: summary[part] for part in SHARED},
        **{part: summary[part] for part in OF_NEWER if part in summary},
        "rows": {row: values for row, values in summary["rows"].items() if row.split()[0] == model},
        **{part: {model: summary[part][model]} for part in OF_EACH},
    }


def card(experiment: Experiment, summary: dict[str, Any], model: str, name: str) -> str:
    """The text of one card."""
    from hf_rerank.hub.card import card_from_summary
    from hf_rerank.models import reranker_classes

    best_step = summary["rows"][f"{model} scaled"]["best_step"]["values"][0]
    config_class, _ = reranker_classes(model)
    return card_from_summary(
        name,
        summary,
        model,
        dataset=(experiment.dataset, experiment.title),
        task_loss=config_class(**summary["models"][model]).task_loss_name,
        command=f"python scripts/experiments/six_rerankers.py --output-dir RESULTS --format {experiment.format} "
        f"--seeds {len(summary['seeds'])} --models {model}",
        source=f"RESULTS/runs/{model}-scaled-{summary['seeds'][0]}/checkpoint-{best_step:.0f}",
        schema=summary.get("schema") or as_prepared(summary),
        figure=f"../{experiment.figure}",
    )


def as_prepared(summary: dict[str, Any]) -> dict[str, Any]:
    """The schema of PRM Public's lists: its summary is older than the part that keeps the fitted one."""
    from hf_rerank.data.prm_public import prm_public_schema

    examination = summary["settings"]["examination"]
    return prm_public_schema(position=True, attraction=True, examination=examination).to_dict()


INTRODUCTION = """# Model cards

Re-rankers trained on simulated lists, without and with the principles (preset `scaled` with the weights 20 and 5, ten
times the default's); means over seeds on the test lists, and the change with its 95 % t-interval over the seeds,
paired. `python scripts/model_cards.py --output-dir model_cards` rewrites this folder from the experiments' summaries.
Weights are not here: each card names the command that trains them."""


def index_of(experiment: Experiment, summary: dict[str, Any]) -> Iterator[str]:
    """The table of one experiment, a row a model."""
    from hf_rerank.hub.papers import PAPERS

    lists, seeds = summary["data"]["train"]["lists"], len(summary["seeds"])
    initial = summary["orders"]["initial"]
    yield (
        f"{lists:,} training lists, {seeds} seeds. Initial order: NDCG@10 {initial['ndcg@10']:.4f}, expected clicks "
        f"{initial['expected_clicks']:.4f} a list."
    )
    yield ""
    yield (
        "| card | NDCG@10 without | with | expected clicks without | with | change | P1 by item, without | with | "
        "P2 by item, without | with |"
    )
    yield f"|{'---|' * 10}"
    for model, found in summary["changes"].items():
        without, principled = (summary["rows"][f"{model} {preset}"] for preset in ("none", "scaled"))
        change = found["differences"]["expected_clicks"]
        cells = [f"[{PAPERS[f'rerank_{model}'].name}]({experiment.dataset}-{model}/README.md)"]
        for measure in ("ndcg@10", "expected_clicks", "p1_item_obedience", "p2_item_obedience"):
            cells += [f"{row[measure]['mean']:.4f}" for row in (without, principled)]
            if measure == "expected_clicks":
                cells.append(f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]")
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
