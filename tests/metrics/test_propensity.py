"""Inverse-propensity estimates: written-out arithmetic, and intervals that contain simulated ground truth."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_rerank import DNNConfig, DNNForReranking
from hf_rerank.data.simulation import PRMWorld, draw_clicks
from hf_rerank.data.simulation.prm_public_lists import draw_blocks
from hf_rerank.errors import InputError
from hf_rerank.evaluation import evaluate, evaluate_orders
from hf_rerank.metrics import PropensityMetrics, expected_clicks, propensity_clicks
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import Dense, ListSchema

# Two lists. Order of the first: slots 2, 0, 1; of the second, which has two items: 1, 0.
SCORES = [[0.5, 0.1, 0.9], [0.2, 0.3, 9.0]]
LABELS = [[1, 0, 1], [1, 0, 5]]
PROPENSITIES = [[1.0, 0.5, 0.25], [0.5, 0.4, math.nan]]
MASK = [[True, True, True], [True, True, False]]


class TestWrittenOutArithmetic:
    """Corrected clicks by slot: 1, 0, 4 and 2, 0; by rank: 4, 1, 0 and 0, 2."""

    @pytest.mark.parametrize(("k", "expected"), [(1, [4, 0]), (2, [5, 2]), (None, [5, 2])])
    def test_top_k(self, k: int | None, expected: list[float]) -> None:
        found = propensity_clicks(SCORES, LABELS, PROPENSITIES, mask=MASK, k=k, reduction="none")
        assert found.tolist() == expected
        assert propensity_clicks(SCORES, LABELS, PROPENSITIES, mask=MASK, k=k) == sum(expected) / 2

    def test_examination_of_the_new_order_weights_the_clicks(self) -> None:
        # 4 * 1 + 1 * 0.5 and 0 * 1 + 2 * 0.5
        found = propensity_clicks(
            SCORES, LABELS, PROPENSITIES, mask=MASK, examination=[1.0, 0.5, 0.2], reduction="none"
        )
        assert found.tolist() == [4.5, 1.0]

    def test_estimates_and_intervals(self) -> None:
        metrics = PropensityMetrics(ks=(1,))
        for row in range(2):  # in batches
            metrics.update([SCORES[row]], [LABELS[row]], np.array([PROPENSITIES[row]]), mask=np.array([MASK[row]]))
        found = metrics.compute()
        # u = 4, 0: mean 2, variance of the mean ((4 - 2)^2 + (0 - 2)^2) / 2 / 2 = 2.
        assert found["ips_clicks@1"] == 2
        assert found["ips_clicks@1_high"] - 2 == pytest.approx(1.959964 * math.sqrt(2))
        # t = 5, 2: ratio 4 / 7; residuals u - r t = 8/7, -8/7: variance 2 * (8/7)^2 / 7^2.
        assert found["snips_clicks@1"] == pytest.approx(4 / 7)
        assert 4 / 7 - found["snips_clicks@1_low"] == pytest.approx(1.959964 * math.sqrt(2) * 8 / 49)
        assert found["largest_inverse_propensity"] == 4

    def test_scaling_all_propensities_does_not_change_snips(self) -> None:
        whole, half = PropensityMetrics(ks=(1,)), PropensityMetrics(ks=(1,))
        whole.update(SCORES, LABELS, PROPENSITIES, mask=MASK)
        half.update(SCORES, LABELS, np.array(PROPENSITIES) / 2, mask=MASK)
        found, other = whole.compute(), half.compute()
        assert other["ips_clicks@1"] == 2 * found["ips_clicks@1"]
        for name in ("snips_clicks@1", "snips_clicks@1_low", "snips_clicks@1_high"):
            assert other[name] == pytest.approx(found[name])

    @pytest.mark.parametrize("wrong", [0.0, -0.1, 1.5, math.nan])
    def test_invalid_propensities_are_rejected(self, wrong: float) -> None:
        with pytest.raises(InputError, match=r"propensities of real items must be .* list 1, slot 0"):
            propensity_clicks([[0.1], [0.2]], [[0], [1]], [[0.5], [wrong]])

    def test_too_few_examination_values_are_rejected(self) -> None:
        with pytest.raises(InputError, match="has 1 positions, but the longest list has 3"):
            propensity_clicks(SCORES, LABELS, PROPENSITIES, mask=MASK, examination=[1.0])

    def test_without_clicks_ips_is_zero_and_snips_is_nan(self) -> None:
        metrics = PropensityMetrics(ks=(1,))
        metrics.update([[0.1, 0.2]], [[0, 0]], [[0.5, 0.5]])
        found = metrics.compute()
        assert found["ips_clicks@1"] == 0
        assert math.isnan(found["snips_clicks@1"])


class TestAgainstGroundTruth:
    """Simulated lists shown in display order; clicks are redrawn without selecting clicked lists."""

    lists = next(draw_blocks(PRMWorld(), 0, 1, 2000))
    examination = PRMWorld().examination
    propensities = np.broadcast_to(examination, lists.attraction.shape)
    # An order other than the displayed one: by noisy true attraction.
    scores = lists.attraction + 0.1 * np.random.default_rng(1).normal(size=lists.attraction.shape)

    def clicks(self, seed: int) -> np.ndarray:
        return draw_clicks(np.random.default_rng(seed), self.examination, self.lists.attraction)

    @pytest.mark.slow
    def test_interval_coverage_of_the_true_value_is_close_to_nominal(self) -> None:
        of_rank = np.argsort(np.argsort(-self.scores, axis=1), axis=1)
        at_top = np.where(of_rank < 5, self.lists.attraction, 0.0).sum()
        truth = {
            "ips_clicks@5": at_top / len(self.lists),
            "snips_clicks@5": at_top / self.lists.attraction.sum(),
            "ips_expected_clicks": expected_clicks(self.scores, self.lists.attraction, self.examination),
        }
        held, logged_inside = dict.fromkeys(truth, 0), 0
        for seed in range(100):
            metrics = PropensityMetrics(ks=(5,), examination=self.examination)
            clicks = self.clicks(seed)
            metrics.update(self.scores, clicks, self.propensities)
            found = metrics.compute()
            for name, value in truth.items():
                held[name] += found[f"{name}_low"] < value < found[f"{name}_high"]
            # The clicks in the log, uncorrected.
            logged = np.where(of_rank < 5, clicks, False).sum() / len(self.lists)
            logged_inside += found["ips_clicks@5_low"] < logged < found["ips_clicks@5_high"]
        # 95 expected; the probability of fewer than 87 is 1 in 1000, that of all 100 is 1 in 170.
        assert all(count >= 87 for count in held.values()), held
        assert logged_inside == 0

    @pytest.mark.slow
    def test_evaluation_reports_propensity_estimates(self) -> None:
        schema = ListSchema(
            items=[Dense("x")],
            propensity="seen",
            attraction="attraction",
            examination=self.examination.tolist(),
            max_list_length=30,
        )
        table = pa.table(
            {
                "x": self.scores.tolist(),
                "click": self.clicks(7).astype(int).tolist(),
                "seen": self.propensities.tolist(),
                "attraction": self.lists.attraction.tolist(),
            }
        )
        processor = ListProcessor.from_lists(table, schema=schema)
        for row in evaluate_orders(processor, table).values():
            truth = row["expected_clicks"]
            assert row["ips_expected_clicks_low"] < truth < row["ips_expected_clicks_high"]
        torch.manual_seed(0)
        model = DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[4]))
        found = evaluate(model, processor, table, max_steps=0)
        assert found["ips_expected_clicks_low"] < found["expected_clicks"] < found["ips_expected_clicks_high"]
        assert "snips_clicks@5_low" in found


def test_lists_must_contain_the_propensity_column_of_the_schema() -> None:
    schema = ListSchema(items=[Dense("x")], propensity="seen")
    rows = {"x": [[0.5, 1.0]], "click": [[1, 0]]}
    with pytest.raises(InputError, match="no column 'seen'"):
        ListProcessor.from_lists(pa.table(rows), schema=schema)(pa.table(rows), with_labels=True)
    for wrong in ([0.5, 0.0], [4.0, 1.0]):
        with pytest.raises(InputError, match=r"'seen' holds .* in list 0, item .*above 0 and at most 1"):
            ListProcessor.from_lists(pa.table({**rows, "seen": [wrong]}), schema=schema)
