"""The ``quantile`` scale of dense features, against values worked out by hand and scipy's normal quantiles."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm

from hf_rerank.errors import InputError
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.scaling import DenseScale, QuantileSample
from hf_rerank.schema import Categorical, Dense, ListSchema
from hf_rerank.validation import Lists


def encoded(column, values, **options):
    schema = ListSchema(items=[Categorical("item"), Dense("x", scale="quantile", **options)])
    table = pa.table({"item": [[1] * len(row) for row in column], "x": column})
    processor = ListProcessor.from_lists(table, schema=schema)
    new = pa.table({"item": [[1] * len(values)], "x": [values]})
    return processor, processor.encode(Lists.from_arrow(new, processor.schema))[0].rows["item_dense"]


def test_a_value_becomes_the_normal_quantile_of_its_rank():
    # Each value has a quarter of the ranks; the middles of these are symmetric, so the mean is 0.
    expected = norm.ppf([0.125, 0.375, 0.625, 0.875])
    _, rows = encoded([[1.0, 2.0], [3.0, 1000.0]], [1.0, 2.0, 3.0, 1000.0])
    np.testing.assert_allclose(rows[:, 0], expected / expected.std(), rtol=1e-6)


def test_new_values_are_interpolated_and_limited_to_the_training_range():
    _, rows = encoded([[1.0, 2.0], [3.0, 1000.0]], [-5.0, 1.0, 1.5, 1e9, 1000.0])
    low, high = rows[1, 0], rows[4, 0]
    assert rows[0, 0] == low
    assert rows[3, 0] == high
    quantiles = norm.ppf([0.125, 0.375, 0.625, 0.875])
    assert rows[2, 0] == pytest.approx((quantiles[0] + quantiles[1]) / 2 / quantiles.std(), rel=1e-6)


def test_columns_that_are_constant_or_have_no_values_become_zero():
    _, rows = encoded([[7.0, 7.0]], [7.0, 9.0, -1.0])
    assert rows.tolist() == [[0.0], [0.0], [0.0]]
    _, rows = encoded([[None, None]], [7.0])
    assert rows.tolist() == [[0.0]]


def test_a_missing_value_becomes_the_mean_and_is_indicated():
    _, rows = encoded([[1.0, 2.0, None], [3.0, 4.0, None]], [None, 1.0], missing="indicator")
    assert rows[0].tolist() == [0.0, 1.0]
    assert rows[1, 1] == 0.0


def test_learned_scale_does_not_depend_on_the_batch_size(monkeypatch):
    monkeypatch.setattr("hf_rerank.processing.scaling.SAMPLE", 100)
    values = np.random.default_rng(0).pareto(1.0, 1000)
    whole, parts = QuantileSample(), QuantileSample()
    whole.add(values)
    for start in range(0, 1000, 7):
        parts.add(values[start : start + 7])
    assert whole.make_scale() == parts.make_scale()
    assert whole.share > 1


def test_saving_keeps_the_scale_and_the_fingerprint(tmp_path):
    processor, _ = encoded([[1.0, 2.0], [3.0, 1000.0]], [1.0])
    processor.save_pretrained(tmp_path)
    loaded = ListProcessor.from_pretrained(tmp_path)
    assert loaded.scales == processor.scales
    assert loaded.schema == processor.schema


def test_a_damaged_scale_is_refused(tmp_path):
    processor, _ = encoded([[1.0, 2.0], [3.0, 1000.0]], [1.0])
    processor.scales["x"] = DenseScale(0.0, 1.0, (2.0, 1.0), (0.0, 1.0))
    processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'x' with 2 knots and 2 quantiles"):
        ListProcessor.from_pretrained(tmp_path)
