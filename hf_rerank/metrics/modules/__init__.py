"""The metrics as modules of the ``evaluate`` library, one folder each, loaded by path without a network.

>>> import evaluate  # doctest: +SKIP
>>> ndcg = evaluate.load(metric_path("ndcg"))  # doctest: +SKIP
>>> ndcg.compute(predictions=[[0.9, 0.1], [0.2, 0.4, 0.3]], references=[[1, 0], [0, 0, 1]], k=10)  # doctest: +SKIP
{'ndcg@10': 0.8154648767857288}
"""

from pathlib import Path

from hf_rerank.errors import InputError, suggestion

__all__ = ["metric_path"]


def metric_path(name: str) -> str:
    """The folder of an installed ``evaluate`` module, for ``evaluate.load``.

    Args:
        name: ``"ndcg"``, ``"mean_average_precision"``, ``"precision_at_k"``, ``"recall_at_k"``,
            ``"reciprocal_rank"``, ``"ranking_auc"`` or ``"grouped_auc"``.
    """
    here = Path(__file__).parent
    known = sorted(script.stem for script in here.glob("*/*.py") if script.stem == script.parent.name)
    if name not in known:
        raise InputError(f"no metric module {name!r}{suggestion(name, known)}; there are {', '.join(known)}")
    return str(here / name)
