"""A re-ranker on top of boosted trees: cross-fitting, and the trees in a saved folder."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from sklearn.metrics import roc_auc_score

from hf_rerank import Reranker
from hf_rerank.errors import InputError
from hf_rerank.initial_rankers.on_top import SCORE_COLUMN, fit_on_top
from hf_rerank.models.prm import PRMConfig, PRMForReranking
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.trees import TREES_FILE
from hf_rerank.schema import Categorical, Dense, ListSchema
from hf_rerank.training import calibrate_initial_score

lightgbm = pytest.importorskip("lightgbm")


def schema():
    return ListSchema(
        items=[Categorical("item"), Categorical("kind"), Dense("price", scale="quantile", missing="indicator")],
        user=[Dense("budget")],
        group="user",
        max_list_length=8,
    )


def columns(count, seed):
    draw = np.random.default_rng(seed)
    found = {"user": [f"u{number // 3}" for number in range(count)], "budget": draw.normal(size=count).tolist()}
    price = draw.pareto(1.5, (count, 6))
    found["item"] = draw.integers(0, 200, (count, 6)).tolist()
    found["kind"] = draw.integers(0, 5, (count, 6)).tolist()
    found["price"] = [[None if draw.random() < 0.1 else float(value) for value in row] for row in price]
    good = (price < 0.5) + (np.array(found["kind"]) == 2) - 0.5 * np.arange(6)
    found["click"] = (draw.random((count, 6)) < 1 / (1 + np.exp(-good))).astype(int).tolist()
    return found


@pytest.fixture(autouse=True, scope="module")
def small_trees():
    """One size, so that all fits of these tests are alike and fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_rerank.initial_rankers.tree_learner.LEAVES", (7,))
        patch.setattr("hf_rerank.initial_rankers.tree_learner.TREES", (20,))
        yield


@pytest.fixture(scope="module")
def fitted(small_trees):
    train, validation = Dataset.from_dict(columns(400, 0)), Dataset.from_dict(columns(100, 1))
    processor = ListProcessor.from_lists(train, schema=schema())
    return processor, train, validation, fit_on_top(processor, train, validation, with_position=True, folds=5)


@pytest.mark.slow
def test_training_lists_get_scores_of_trees_that_have_not_seen_their_group(fitted):
    processor, _, validation, found = fitted
    scores = np.array(found.train[SCORE_COLUMN])
    assert scores.shape == (400, 6)
    # Different clicks in the lists of one user change the scores of other users, but not of this user.
    changed = columns(400, 0)
    mine = [number for number, user in enumerate(changed["user"]) if user == "u0"]
    for number in mine:
        changed["click"][number] = [1 - click for click in changed["click"][number]]
    again = fit_on_top(processor, Dataset.from_dict(changed), validation, with_position=True, folds=5)
    other = np.array(again.train[SCORE_COLUMN])
    assert not np.array_equal(other, scores)
    assert again.settings["trees"] == found.settings["trees"]
    assert np.array_equal(other[mine], scores[mine])


def test_new_lists_are_scored_by_the_processor(fitted):
    _, _, validation, found = fitted
    tensors = found.processor(validation.with_format("arrow")[:], return_tensors="np")
    scores = tensors["initial_scores"]
    assert scores.shape == (100, 6)
    clicked = np.array(validation["click"]) > 0
    assert roc_auc_score(clicked.reshape(-1), scores.reshape(-1)) > 0.65


def test_a_column_of_scores_takes_precedence_over_the_trees(fitted):
    _, _, _, found = fitted
    tensors = found.processor(found.train.with_format("arrow")[:], return_tensors="np")
    np.testing.assert_array_equal(tensors["initial_scores"], np.array(found.train[SCORE_COLUMN], dtype=np.float32))


@pytest.mark.slow
def test_a_saved_folder_ranks_raw_lists_without_lightgbm(fitted, tmp_path):
    _, _, validation, found = fitted
    config = PRMConfig.for_schema(found.processor.schema, initial_score="start", hidden_size=8)
    calibrate_initial_score(config, found.processor, found.train)
    reranker = Reranker(found.processor, PRMForReranking(config))
    reranker.save_pretrained(tmp_path)
    assert TREES_FILE in json.loads((tmp_path / "manifest.json").read_text())["files"]
    rows = validation.remove_columns("click").to_list()[:5]
    expected = reranker.rerank(rows)
    assert Reranker.from_pretrained(tmp_path).rerank(rows) == expected
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    code = (
        "import sys; sys.modules['lightgbm'] = None\n"
        "import json, hf_rerank\n"
        f"rows = json.load(open({str(tmp_path / 'rows.json')!r}))\n"
        f"print(json.dumps(hf_rerank.Reranker.from_pretrained({str(tmp_path)!r}).rerank(rows)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == expected


def test_trees_that_read_the_order_are_refused_by_a_model_without_it(fitted):
    _, _, _, found = fitted
    config = PRMConfig.for_schema(found.processor.schema, initial_score="start", position_input="none")
    with pytest.raises(InputError, match=r"the trees read it: .*--trees-read-order no"):
        calibrate_initial_score(config, found.processor, found.train)


@pytest.mark.slow
def test_exported_graph_gives_the_scores_of_the_model(fitted, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from hf_rerank.inference.export import export_onnx

    _, _, validation, found = fitted
    config = PRMConfig.for_schema(found.processor.schema, initial_score="start", relative_features=True, hidden_size=8)
    calibrate_initial_score(config, found.processor, found.train)
    model = PRMForReranking(config)
    model.scorer.weight.data.normal_()
    reranker = Reranker(found.processor, model)
    export_onnx(reranker, tmp_path / "graph")
    rows = validation.remove_columns("click").to_list()[:20]
    exported = Reranker.from_pretrained(tmp_path / "graph")
    for ours, theirs in zip(reranker.predict(rows), exported.predict(rows), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_damaged_trees_are_refused(fitted, tmp_path):
    _, _, _, found = fitted
    found.processor.save_pretrained(tmp_path)
    broken = bytearray((tmp_path / TREES_FILE).read_bytes())
    broken[-9] ^= 1
    (tmp_path / TREES_FILE).write_bytes(bytes(broken))
    with pytest.raises(InputError, match="the trees or the scales"):
        ListProcessor.from_pretrained(tmp_path)


def test_lists_with_scores_and_a_single_fold_are_refused(fitted):
    processor, train, validation, found = fitted
    with pytest.raises(InputError, match="have scores of an earlier ranker"):
        fit_on_top(found.processor, train, validation)
    with pytest.raises(InputError, match="folds is 1"):
        fit_on_top(processor, train, validation, folds=1)


def test_values_learned_after_the_trees_keep_the_scores_of_unknown_ones(fitted):
    _, _, _, found = fitted
    learned = found.processor
    processor = ListProcessor(learned.schema, learned.vocabularies, learned.scales, learned.fit_report, learned.trees)
    table = pa.table(columns(20, 5) | {"item": [[900, 900, 901, 901, 1, 2]] * 20})
    before = processor(table, return_tensors="np")["initial_scores"]
    processor.extend(table)
    after = processor(table, return_tensors="np")["initial_scores"]
    np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_trees_read_the_order_if_it_improves_cross_fitted_scores(fitted):
    processor, train, validation, _ = fitted
    values = {
        kind: fit_on_top(processor, train, validation, with_position=kind).settings for kind in (False, True, None)
    }
    best = max((False, True), key=lambda kind: values[kind]["start_ndcg@10"])
    assert values[None] == values[best]
    assert values[False]["with_position"] is False
    assert values[True]["with_position"] is True
