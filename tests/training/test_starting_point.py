"""Calibration of the initial ranker's score, and rates of unknown values, against independent computations."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from sklearn.linear_model import LogisticRegression

from hf_rerank.cli import main
from hf_rerank.errors import InputError
from hf_rerank.models.prm import PRMConfig
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import NO_ORDER, Categorical, ListSchema
from hf_rerank.training.starting_point import calibrate_initial_score, match_unknown_values


def lists(count=300, seed=0, scale=2.0, shift=-1.0):
    draw = np.random.default_rng(seed)
    scores = draw.normal(5.0, 0.1, size=(count, 4))
    chance = 1 / (1 + np.exp(-(scale * (scores - 5.0) * 10 + shift)))
    return {
        "item": draw.integers(0, 9, (count, 4)).tolist(),
        "score": scores.tolist(),
        "click": (draw.random((count, 4)) < chance).astype(int).tolist(),
    }


def processor_and_config(columns, **options):
    schema = ListSchema(items=[Categorical("item")], initial_score="score")
    processor = ListProcessor.from_lists(Dataset.from_dict(columns), schema=schema)
    return processor, PRMConfig.for_schema(processor.schema, initial_score="start", **options)


def test_calibration_under_log_loss_equals_logistic_regression():
    columns = lists()
    processor, config = processor_and_config(columns, position_input="none")
    with pytest.warns(UserWarning, match="a model without the order has initial_score='none'"):
        calibrate_initial_score(config, processor, Dataset.from_dict(columns))
    assert config.initial_score_positions == []
    scores, clicks = np.array(columns["score"]).reshape(-1, 1), np.array(columns["click"]).reshape(-1)
    # Standardized, so that the solver gets close to the minimum.
    units = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit((scores - 5) * 10, clicks)
    assert config.initial_score_scale == pytest.approx(units.coef_[0, 0] * 10, rel=1e-3)
    assert config.initial_score_offset == pytest.approx(units.intercept_[0] - units.coef_[0, 0] * 50, rel=1e-3)


def test_tune_starts_from_scores_calibrated_for_the_loss_of_each_trial(tmp_path, monkeypatch, capsys):
    optuna = pytest.importorskip("optuna")
    columns, trainers = lists(), []

    def keep(trainer, *_, **__):
        trainers.append(trainer)
        return SimpleNamespace(run_id="0", objective=0.0, hyperparameters={})

    monkeypatch.setattr("hf_rerank.training.tuning.search", keep)
    schema = ListSchema(items=[Categorical("item")], initial_score="score", position=NO_ORDER)
    for split in ("train", "validation", "test"):
        Dataset.from_dict(columns).to_parquet(tmp_path / "lists" / f"{split}-00000-of-00001.parquet")
    schema.save(tmp_path / "lists" / "schema.json")
    given = ["tune", "--model", "dnn", "--data", str(tmp_path / "lists"), "--output-dir", str(tmp_path / "out")]
    given += ["--set", "initial_score=start", "--search", "task_loss=binary_log_loss,softmax_loss"]
    assert main([*given, "--metric-for-best-model", "loss"]) == 2
    assert "losses of different task_loss are not comparable" in capsys.readouterr().err
    assert main(given) == 0
    trial = optuna.trial.FixedTrial({"task_loss": "binary_log_loss"})
    config = trainers[0].call_model_init(trial).config
    scores, clicks = np.array(columns["score"]).reshape(-1, 1), np.array(columns["click"]).reshape(-1)
    units = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit((scores - 5) * 10, clicks)
    assert config.initial_score_scale == pytest.approx(units.coef_[0, 0] * 10, rel=1e-3)
    assert config.initial_score_offset == pytest.approx(units.intercept_[0] - units.coef_[0, 0] * 50, rel=1e-3)
    of_lists = trainers[0].call_model_init(optuna.trial.FixedTrial({"task_loss": "softmax_loss"})).config
    # The softmax over a list ignores what all scores share, so it fits the scale to other comparisons.
    assert of_lists.task_loss == "softmax_loss"
    assert abs(of_lists.initial_score_scale - config.initial_score_scale) > 0.01


def test_calibration_fits_one_number_per_position():
    columns = lists(count=2000)
    draw = np.random.default_rng(1)
    # Half of the clicks at the second position are removed, and nine of ten at the fourth.
    seen = draw.random((2000, 4)) < np.array([1.0, 0.5, 1.0, 0.1])
    columns["click"] = (np.array(columns["click"]) * seen).tolist()
    processor, config = processor_and_config(columns)
    calibrate_initial_score(config, processor, Dataset.from_dict(columns))
    scores, clicks = np.array(columns["score"]).reshape(-1, 1), np.array(columns["click"]).reshape(-1)
    features = np.concatenate([(scores - 5) * 10, np.tile(np.eye(4), (2000, 1))], axis=1)
    expected = LogisticRegression(C=1e4, tol=1e-10, max_iter=2000).fit(features, clicks).coef_[0]
    assert config.initial_score_scale == pytest.approx(expected[0] * 10, rel=1e-2)
    positions = np.array(config.initial_score_positions)
    assert len(positions) == processor.schema.max_list_length
    # Slightly closer together because of the regularization towards 0.
    np.testing.assert_allclose(positions[1:4] - positions[0], expected[2:] - expected[1], atol=0.1)
    assert positions[4:].tolist() == [0.0] * 26


@pytest.mark.parametrize("loss", ["softmax_loss", "pairwise_hinge_loss"])
def test_calibration_under_shift_invariant_losses_centres_the_scores(loss):
    columns = lists()
    processor, config = processor_and_config(columns, task_loss=loss)
    calibrate_initial_score(config, processor, Dataset.from_dict(columns))
    mean = np.array(columns["score"], dtype=np.float32).mean()
    assert config.initial_score_scale > 0
    assert config.initial_score_scale * mean + config.initial_score_offset == pytest.approx(0.0, abs=1e-3)


def test_unusable_initial_scores_are_rejected():
    columns = lists()
    processor, config = processor_and_config(columns)
    with pytest.raises(InputError, match="all equal"):
        calibrate_initial_score(config, processor, Dataset.from_dict(columns | {"score": [[1.0] * 4] * 300}))
    del columns["score"]
    with pytest.raises(InputError, match=r"no column .score."):
        calibrate_initial_score(config, processor, Dataset.from_dict(columns))


def test_unknown_rates_match_the_evaluation_lists_and_large_ones_give_a_warning():
    schema = ListSchema(items=[Categorical("item"), Categorical("kind")], user=[Categorical("segment")])
    train = {"item": [[1, 1, 2, 2]], "kind": [[5, 5, 5, 5]], "segment": [7], "click": [[0, 1, 0, 0]]}
    train = {name: values * 2 for name, values in train.items()}
    processor = ListProcessor.from_lists(Dataset.from_dict(train), schema=schema)
    config = PRMConfig.for_schema(processor.schema, unknown_rate=None)
    new = {"item": [[1, 8, 9, 10]], "kind": [[5, 5, 6, 5]], "segment": [7], "click": [[0, 1, 0, 0]]}
    with pytest.warns(UserWarning, match="column 'item': 75% of its values in the evaluation lists are unknown"):
        shares = match_unknown_values(config, processor, Dataset.from_dict(new))
    assert shares == {"item": 0.75, "kind": 0.25, "segment": 0.0}
    assert config.item_unknown_rates == [0.75, 0.25]
    assert config.user_unknown_rates == [0.01]
