"""All ranking metrics over any number of lists, batch by batch, in bounded memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_rerank.errors import InputError
from hf_rerank.metrics.inputs import check_k, check_option, rank_slots, read_examination, read_lists
from hf_rerank.metrics.ranked_lists import RankedLists
from hf_rerank.metrics.roc_auc import AUC_BUCKETS, EXACT_AUC_PAIRS, AUCHistogram, exact_auc
from hf_rerank.metrics.simulated_clicks import sum_expected_clicks


class RankingMetrics:
    """Sums of every metric over lists that arrive in batches; batches may differ in width.

    The definitions are those of the functions in ``hf_rerank.metrics``; ``settings()`` names the choices made.
    ``no_click`` governs the metrics at k. The AUCs count pairs of items, so lists without a click count in the pooled
    AUC and not in GAUC; expected clicks do not depend on the clicks that were logged, so every list counts.

    Memory: 5 bytes for each (list, item) pair up to ``exact_auc_pairs`` (250 MB at the default, twice that while
    ``compute`` sorts), 16 MB from then on. Pooled scores are stored as float32.

    Args:
        ks: The cut-offs.
        no_click: ``"zero"``: lists without a click count as 0; ``"skip"``: they are left out.
        gain: Gain of NDCG, ``"exponential"`` or ``"linear"``.
        click_above: A click is a label above this number, at least 0; only NDCG reads more of a label. None: 0. Then
            fractional labels, such as the scores of a teacher, are not clicks: every metric but NDCG is nan, with a
            warning.
        ap_denominator: Denominator of MAP, ``"clicks"`` or ``"hits"``.
        examination: [positions], the probability that each position is examined; needed for expected clicks.
        exact_auc_pairs: Up to this many pairs the pooled AUC is exact; beyond, scores s are counted in equal buckets
            of ``(1 + s / (1 + |s|)) / 2``, an increasing map of all numbers to (0, 1) that is finest near 0; a quarter
            of the buckets lies between the scores 0 and 1. The map is fixed, so any two accumulators can be merged.

    Example:

    >>> metrics = RankingMetrics(ks=(1, 2))
    >>> metrics.update([[0.9, 0.5, 0.1]], [[0, 1, 0]])
    >>> metrics.update([[0.2, 0.4]], [[0, 1]])
    >>> {name: round(value, 3) for name, value in metrics.compute().items() if name in ("mrr@2", "recall@1")}
    {'recall@1': 0.5, 'mrr@2': 0.75}
    """

    def __init__(
        self,
        ks: Iterable[int] = (5, 10),
        *,
        no_click: str = "zero",
        gain: str = "exponential",
        click_above: float | None = None,
        ap_denominator: str = "clicks",
        examination: Any = None,
        exact_auc_pairs: int = EXACT_AUC_PAIRS,
    ) -> None:
        check_option("no_click", no_click, ("zero", "skip"))
        check_option("gain", gain, ("exponential", "linear"))
        check_option("ap_denominator", ap_denominator, ("clicks", "hits"))
        ks = tuple(ks)
        if not ks or None in ks:
            raise InputError(f"ks must be whole numbers >= 1; got {ks}")
        self.ks = tuple(check_k(k) for k in ks)
        if click_above is not None and not 0 <= click_above < math.inf:
            raise InputError(f"click_above must be a number >= 0, or None; got {click_above}")
        self.no_click, self.gain, self.ap_denominator = no_click, gain, ap_denominator
        self.click_above = click_above
        self.examination = None if examination is None else read_examination(examination)
        self.exact_auc_pairs = exact_auc_pairs
        self.reset()

    def reset(self) -> None:
        """Forgets every list."""
        self._counts = {
            "lists": 0,
            "items": 0,
            "lists_without_click": 0,
            "lists_left_out_of_gauc": 0,
            "truncated_lists": 0,
            "clicks_cut": 0,
        }
        self.fraction: float | None = None  # a fractional label, if there was one
        self._sums: dict[str, float] = {}  # by name, over the lists that count
        self._gauc_sum = 0.0
        self._expected: dict[str, float] = {}  # totals over all lists: model, best, initial
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []  # float32 scores, bool clicks
        self._pairs_held = 0
        self._histogram: AUCHistogram | None = None

    def update(
        self,
        scores: Any,
        labels: Any,
        *,
        mask: Any = None,
        attraction: Any = None,
        positions: Any = None,
        cut_labels: Any = None,
    ) -> None:
        """Adds lists.

        Args:
            scores: ``[..., list]``, higher is better. The pooled AUC compares scores of different lists: pass
                probabilities.
            labels: ``[..., list]``, >= 0.
            mask: bool ``[..., list]``, True at real items; None: all are.
            attraction: ``[..., list]``, the true probability of a click on an item that is examined. Needs
                ``examination``; in every update or in none.
            positions: integer ``[..., list]``, initial positions from 0 at the top. Needs ``attraction``; in every
                update or in none.
            cut_labels: ``[..., cut items]``, the labels of items that were cut from the lists, below 0 at padding; see
                ``RankedLists``. The AUCs and expected clicks are over the other items.

        Raises:
            InputError: As for the functions in ``hf_rerank.metrics``, or optional inputs that do not go together. In
                that case nothing is added.
        """
        ranked = RankedLists(scores, labels, mask, cut_labels=cut_labels, click_above=self.click_above or 0.0)
        expected = self._read_expected(ranked, scores, mask, attraction, positions)
        counted = slice(None) if self.no_click == "zero" else ranked.clicked > 0
        sums = {name: float(values[counted].sum()) for name, values in self._compute_at_each_k(ranked)}
        gauc = ranked.auc()
        left_out = np.isnan(gauc)

        _add(self._sums, sums)
        _add(self._expected, expected)
        self._gauc_sum += float(gauc[~left_out].sum())
        if self.click_above is None and self.fraction is None:
            self.fraction = ranked.fraction
        counts = (
            len(gauc),
            ranked.lengths.sum(),
            (ranked.clicked == 0).sum(),
            left_out.sum(),
            (ranked.cut_lengths > 0).sum(),
            ranked.cut_clicks.sum(),
        )
        _add(self._counts, {name: int(count) for name, count in zip(self._counts, counts, strict=True)})
        real = np.arange(ranked.labels.shape[-1]) < ranked.lengths[:, None]
        self._hold(ranked.scores[real].astype(np.float32), ranked.hits[real])

    def merge(self, other: RankingMetrics) -> None:
        """Adds the lists of another accumulator with the same settings; ``other`` stays as it is."""
        if self.settings() != other.settings():
            raise InputError(f"only equal settings can be merged; got {self.settings()} and {other.settings()}")
        if self._counts["lists"] and other._counts["lists"] and self._expected.keys() != other._expected.keys():
            raise InputError(
                "one of the two was given attraction or positions and the other was not: give them to both or neither"
            )
        _add(self._sums, other._sums)
        _add(self._expected, other._expected)
        _add(self._counts, other._counts)
        self._gauc_sum += other._gauc_sum
        self.fraction = self.fraction if other.fraction is None else other.fraction
        if other._histogram is not None:
            self._fold().merge(other._histogram)
        for scores, clicked in list(other._pairs):
            self._hold(scores, clicked)

    def compute(self) -> dict[str, float]:
        """Computes every metric over the lists so far; nan where no list counts.

        Returns:
            - ``auc`` (pooled), ``auc_error_bound`` (once the histogram is in use), ``gauc`` (each list with both
              classes counts the same);
            - for each k ``ndcg@k``, ``map@k``, ``precision@k`` (divided by k), ``recall@k``, ``mrr@k``, ``clicks@k``;
            - if attraction was given, ``expected_clicks`` and ``expected_clicks_best`` (by true attraction), means
              over all lists; with positions too, ``expected_clicks_initial`` and ``expected_clicks_share``, which is
              (model - initial) / (best - initial) of the totals;
            - the counts ``lists``, ``items``, ``lists_without_click``, ``lists_left_out_of_gauc``, ``truncated_lists``
              (lists with items cut) and ``clicks_cut`` (clicks on those items).
        """
        counts = self._counts
        lists = counts["lists"]
        counted = lists - (counts["lists_without_click"] if self.no_click == "skip" else 0)
        results: dict[str, float] = {}
        if self._histogram is None:
            scores = np.concatenate([scores for scores, _ in self._pairs]) if self._pairs else np.zeros(0)
            clicked = np.concatenate([clicked for _, clicked in self._pairs]) if self._pairs else np.zeros(0, bool)
            results["auc"] = exact_auc(scores, clicked)
        else:
            results["auc"] = self._histogram.auc()
            results["auc_error_bound"] = self._histogram.error_bound()
        results["gauc"] = _mean(self._gauc_sum, lists - counts["lists_left_out_of_gauc"])
        for k in self.ks:
            for metric in ("ndcg", "map", "precision", "recall", "mrr", "clicks"):
                results[f"{metric}@{k}"] = _mean(self._sums.get(f"{metric}@{k}", 0.0), counted)
        if self.fraction is not None:
            results = {name: value if name.startswith("ndcg@") else math.nan for name, value in results.items()}
            warnings.warn(
                f"labels such as {self.fraction:g} are fractional, so it is unknown which items were clicked: all "
                "metrics but NDCG are nan; define which labels are clicks with click_above (--click-above)",
                UserWarning,
                stacklevel=2,
            )
        if self._expected:
            total = self._expected
            results["expected_clicks"] = _mean(total["model"], lists)
            results["expected_clicks_best"] = _mean(total["best"], lists)
            if "initial" in total:
                results["expected_clicks_initial"] = _mean(total["initial"], lists)
                results["expected_clicks_share"] = _mean(
                    total["model"] - total["initial"], total["best"] - total["initial"]
                )
        return {**results, **counts}

    def settings(self) -> dict[str, Any]:
        """Returns the choices of definition, for a table or a model card; plain JSON values."""
        return {
            "ks": list(self.ks),
            "no_click": self.no_click,
            "ndcg_gain": self.gain,
            "click_above": self.click_above or 0.0,
            "map_denominator": self.ap_denominator,
            "precision_denominator": "k",
            "gauc_weighting": "lists",
            "ties": "slot order",
            "auc_exact_up_to_pairs": self.exact_auc_pairs,
            "auc_buckets_beyond": AUC_BUCKETS,
            "examination": None if self.examination is None else self.examination.tolist(),
        }

    def _compute_at_each_k(self, ranked: RankedLists) -> Iterable[tuple[str, np.ndarray]]:
        for k in self.ks:
            yield f"ndcg@{k}", ranked.ndcg(k, self.gain)
            yield f"map@{k}", ranked.average_precision(k, self.ap_denominator)
            yield f"precision@{k}", ranked.precision(k, "k")
            yield f"recall@{k}", ranked.recall(k)
            yield f"mrr@{k}", ranked.reciprocal_rank(k)
            yield f"clicks@{k}", ranked.clicks(k)

    def _read_expected(
        self, ranked: RankedLists, scores: Any, mask: Any, attraction: Any, positions: Any
    ) -> dict[str, float]:
        """Computes totals of expected clicks under three orders: the model's, the oracle's, the initial one."""
        inputs = {"attraction": attraction, "positions": positions}
        given = {name: value for name, value in inputs.items() if value is not None}
        if given and (self.examination is None or attraction is None):
            raise InputError(
                f"got {' and '.join(given)}: expected clicks need attraction and, in RankingMetrics(...), "
                "examination; positions add the initial order to them"
            )
        expected_before = {"attraction": "best" in self._expected, "positions": "initial" in self._expected}
        if self._counts["lists"] and any((name in given) != before for name, before in expected_before.items()):
            raise InputError(
                f"got {' and '.join(given) or 'neither attraction nor positions'}, unlike earlier updates: give "
                "attraction, and positions, in every update or in none"
            )
        if attraction is None:
            return {}
        (_, attraction, *initial), mask, _ = read_lists(mask, scores=scores, **given)
        orders = {"model": ranked.order, "best": rank_slots(attraction, mask)}
        for positions in initial:
            order = orders["initial"] = rank_slots(-positions, mask)
            steps = np.diff(np.take_along_axis(positions, order, axis=-1), axis=-1)
            if ((steps == 0) & np.take_along_axis(mask, order, axis=-1)[:, 1:]).any():
                raise InputError("positions of the real items of a list must differ; a list has one position twice")
        assert self.examination is not None
        return {
            name: float(sum_expected_clicks(order, attraction, mask, self.examination).sum())
            for name, order in orders.items()
        }

    def _hold(self, scores: np.ndarray, clicked: np.ndarray) -> None:
        """Keeps pairs for the pooled AUC, or counts them once there are too many to keep."""
        self._pairs.append((scores, clicked))
        self._pairs_held += len(scores)
        if self._histogram is not None or self._pairs_held > self.exact_auc_pairs:
            self._fold()

    def _fold(self) -> AUCHistogram:
        """Moves the kept pairs into the histogram, and returns it."""
        if self._histogram is None:
            self._histogram = AUCHistogram()
        for scores, clicked in self._pairs:
            wide = scores.astype(np.float64)
            self._histogram.add((1.0 + wide / (1.0 + np.abs(wide))) / 2.0, clicked)
        self._pairs, self._pairs_held = [], 0
        return self._histogram


def _add(totals: dict, more: dict) -> None:
    for name, value in more.items():
        totals[name] = totals.get(name, 0) + value


def _mean(total: float, count: float) -> float:
    return float(total / count) if count else math.nan
