"""The model card: what a re-ranker is, how to load it, and the results of its run, generated from ``results.json``."""

from __future__ import annotations

from typing import Any

SHOWN = ("auc", "gauc", "ndcg@5", "ndcg@10", "map@10", "precision@5", "expected_clicks")
SHOWN_OBEDIENCE = ("p1_obedience", "p2_obedience", "score_spread")


def model_card(name: str, results: dict[str, Any]) -> str:
    """The text of README.md.

    Args:
        name: Of the repository.
        results: As ``RerankTrainer.results``.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="hf_rerank", tags=["re-ranking", "recommender-system"], license="apache-2.0")
    objective = results["objective"]
    schema = results["schema"]
    columns = [
        f"| {feature['name']} | {part} | {feature['kind']} |"
        for part in ("items", "user", "history")
        for feature in schema[part]
    ]
    lines = [
        "---",
        data.to_yaml(),
        "---",
        f"# {name}",
        "",
        f"A re-ranker of the type `{results['model']['model_type']}` with {results['parameters']:,} parameters: it "
        f"reads a list of at most {schema['max_list_length']} items as a whole and puts them in order.",
        "",
        "```python",
        "from hf_rerank import Reranker",
        "",
        f'reranker = Reranker.from_pretrained("{name}")',
        "reranker.rerank(lists, top_k=10)",
        "```",
        "",
        "## Training",
        "",
        f"Task loss `{results['task_loss']}`; principled preset `{objective['preset']}` (weights "
        f"{objective['convergence_weight']:g} and {objective['adversarial_weight']:g}, reduction "
        f"`{objective['consistency_reduction']}`, space `{objective['consistency_space']}`). Training lists: "
        f"{results['data'].get('train', {}).get('lists')}. Seed {results['training_arguments']['seed']}. "
        "Everything else is in `results.json`.",
        "",
        *_evaluation_lines(results["evaluations"]),
        "## Columns",
        "",
        "| column | of | kind |",
        "|---|---|---|",
        *columns,
        "",
    ]
    return "\n".join(lines)


def plain_model_card(name: str) -> str:
    """The text of README.md of a model whose results are not known.

    Args:
        name: Of the repository.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="hf_rerank", tags=["re-ranking", "recommender-system"])
    loading = f'from hf_rerank import Reranker\n\nreranker = Reranker.from_pretrained("{name}")'
    return f"---\n{data.to_yaml()}\n---\n# {name}\n\nA re-ranker.\n\n```python\n{loading}\n```\n"


def _evaluation_lines(evaluations: dict[str, dict[str, float]]) -> list[str]:
    lines = []
    for prefix, metrics in evaluations.items():
        lines += [f"## Results: {prefix}", "", "| measure | value |", "|---|---|"]
        for name in (*SHOWN, *SHOWN_OBEDIENCE):
            value = metrics.get(f"{prefix}_{name}")
            if value is not None:
                lines.append(f"| {name} | {value:.4f} |")
        lines.append("")
    return lines
