"""Writes the card of every re-ranker in the committed summary of ``six_rerankers``; nothing is trained.

    python scripts/model_cards.py --output-dir model_cards

The folder gets ``<dataset>-<model>/README.md`` and ``results.json`` (the summary, cut to that model), and the
experiment's figure once, beside them, as every card shows it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

EXPERIMENT = Path(__file__).parent / "experiments" / "results" / "six_rerankers"
FIGURE = "six_rerankers.png"
DATASET = ("prm_public_simulated", "PRM Public, simulated")
# Parts of the summary that have an entry a model, and parts that all models share.
OF_EACH = ("changes", "parameters", "models", "learning_rates")
SHARED = ("seeds", "orders", "training", "data", "settings", "environment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    write_cards(parser.parse_args().output_dir)


def write_cards(folder: Path) -> None:
    """Writes the card and the results of every model in the summary."""
    from hf_rerank.data.prm_public import prm_public_schema
    from hf_rerank.hub.card import card_from_summary
    from hf_rerank.models import reranker_classes
    from hf_rerank.training.results import write_json

    whole = json.loads((EXPERIMENT / "summary.json").read_text(encoding="utf-8"))
    # As prepared, not as fitted: the summary does not say how many values the training lists had.
    schema = prm_public_schema(position=True, attraction=True, examination=whole["settings"]["examination"])
    for model in whole["changes"]:
        summary, name = of_one_model(whole, model), f"{DATASET[0]}-{model}"
        best_step = summary["rows"][f"{model} scaled"]["best_step"]["values"][0]
        config_class, _ = reranker_classes(model)
        text = card_from_summary(
            name,
            summary,
            model,
            dataset=DATASET,
            task_loss=config_class(**summary["models"][model]).task_loss_name,
            command=f"python scripts/experiments/six_rerankers.py --output-dir RESULTS --seeds {len(whole['seeds'])} "
            f"--models {model}",
            source=f"RESULTS/runs/{model}-scaled-{whole['seeds'][0]}/checkpoint-{best_step:.0f}",
            schema=schema.to_dict(),
            figure=f"../{FIGURE}",
        )
        write_json(folder / name / "results.json", summary)
        (folder / name / "README.md").write_text(text, encoding="utf-8")
    shutil.copyfile(EXPERIMENT / FIGURE, folder / FIGURE)


def of_one_model(summary: dict[str, Any], model: str) -> dict[str, Any]:
    """What a summary says of one model, laid out as the whole."""
    return {
        **{part: summary[part] for part in SHARED},
        "rows": {row: values for row, values in summary["rows"].items() if row.split()[0] == model},
        **{part: {model: summary[part][model]} for part in OF_EACH},
    }


if __name__ == "__main__":
    main()
