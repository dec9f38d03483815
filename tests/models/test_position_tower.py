"""The position tower: two items in both orders, and what it changes in every model.

Item A has relevance 0.4 and item B 0.6. The first position is always examined, the second with probability 0.5. So
clicks have these probabilities: A first 0.4, then B 0.5 * 0.6 = 0.3; B first 0.6, then A 0.5 * 0.4 = 0.2.
"""

import math
from dataclasses import replace
from functools import partial

import datasets
import pytest
import torch
from test_relative_features import features, model

from hf_rerank import (
    Categorical,
    DNNConfig,
    DNNForReranking,
    ListProcessor,
    ListSchema,
    RerankTrainer,
    RerankTrainingArguments,
)
from hf_rerank.errors import InputError
from hf_rerank.losses import binary_log_loss, softmax_loss
from hf_rerank.models.auto import RERANKERS
from hf_rerank.models.position_tower import STEP, PositionTower
from hf_rerank.principled import preset_objective
from hf_rerank.training import calibrate_initial_score

# Slots are A and B, in the order A B and then in the order B A.
POSITIONS = torch.tensor([[0, 1], [1, 0]])
CLICKS = torch.tensor([[0.4, 0.3], [0.2, 0.6]])
LABELS = torch.tensor([[1.0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])


def tower_of(*propensities):
    tower = PositionTower(len(propensities)).eval()
    tower.weight.data = torch.tensor(propensities).log() / STEP
    tower.occurs.fill_(True)
    return tower


def with_tower(kind="prm", *, bent=True, **options):
    """A model whose tower is not flat, in evaluation mode."""
    found = model(kind, position_tower="given", **options)
    if bent:
        found.position_tower.weight.data = -torch.arange(8.0) / STEP / 4
        found.position_tower.occurs.fill_(True)
    return found


def test_multiplied_probabilities_are_those_of_clicks():
    relevance = torch.tensor([0.4, 0.6]).logit().expand(2, 2)
    logits = tower_of(1.0, 0.5)(relevance, POSITIONS, torch.ones(2, 2, dtype=torch.bool), multiply=True)
    torch.testing.assert_close(logits.sigmoid(), CLICKS)


def test_added_logarithms_give_the_odds_of_two_clicks():
    """Under a softmax the odds of A against B are 0.4 : 0.3 in the first order, 0.2 : 0.6 in the second."""
    relevance = torch.tensor([0.4, 0.6]).log().expand(2, 2)
    logits = tower_of(1.0, 0.5)(relevance, POSITIONS, torch.ones(2, 2, dtype=torch.bool), multiply=False)
    torch.testing.assert_close(logits.softmax(-1), torch.tensor([[4 / 7, 3 / 7], [1 / 4, 3 / 4]]))


@pytest.mark.parametrize("multiply", [True, False])
def test_a_batch_without_items_has_finite_gradients(multiply):
    tower, logits = PositionTower(4), torch.zeros(2, 3, requires_grad=True)
    tower(logits, POSITIONS.new_zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), multiply=multiply).sum().backward()
    assert logits.grad.isfinite().all()
    assert tower.weight.grad.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_propensities_are_relative_to_the_largest_that_occurred():
    assert tower_of(0.2, 0.4, 0.1).propensities() == pytest.approx([0.5, 1.0, 0.25])
    tower = tower_of(0.2, 0.4, 0.1)
    tower.occurs[1] = False
    assert tower.propensities() == pytest.approx([1.0, math.nan, 0.5], nan_ok=True)
    assert all(math.isnan(value) for value in PositionTower(3).propensities())


def test_only_training_records_the_positions_that_occur():
    tower, mask = PositionTower(4), torch.tensor([[True, True, False]])
    tower.eval()(torch.zeros(1, 3), torch.tensor([[2, 0, 99]]), mask, multiply=True)
    assert tower.occurs.tolist() == [False, False, False, False]
    tower.train()(torch.zeros(1, 3), torch.tensor([[2, 0, 99]]), mask, multiply=True)
    assert tower.occurs.tolist() == [True, False, True, False]


@pytest.mark.parametrize("multiply", [True, False])
def test_padding_and_extreme_scores_stay_finite(multiply):
    lowest = torch.finfo(torch.float32).min
    logits = torch.tensor([[1e4, -1e4, lowest]], requires_grad=True)
    tower = tower_of(1.0, 0.5)
    mask = torch.tensor([[True, True, False]])
    found = tower(logits, torch.tensor([[0, 1, 99]]), mask, multiply=multiply)  # 99: no position of the table
    assert found.isfinite().all()
    assert found[0, 2] == lowest
    found[mask].sum().backward()
    assert logits.grad.isfinite().all()
    assert tower.weight.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "multiply"), [(binary_log_loss, True), (partial(softmax_loss, normalize=False), False)]
)
def test_training_separates_relevance_from_examination(loss, multiply):
    """Both losses are linear in the labels, so probabilities as labels give the mean over clicks. Two of the tower's
    four positions never occur."""
    scores, tower = torch.zeros(2, requires_grad=True), PositionTower(4)
    optimizer = torch.optim.Adam([{"params": [scores], "lr": 0.02}, {"params": [tower.weight], "lr": 0.001}])
    for _ in range(600):
        optimizer.zero_grad()
        logits = tower(scores.expand(2, 2), POSITIONS, torch.ones(2, 2, dtype=torch.bool), multiply=multiply)
        loss(logits, CLICKS).backward()
        optimizer.step()
    assert tower.propensities() == pytest.approx([1.0, 0.5, math.nan, math.nan], abs=0.01, nan_ok=True)
    if multiply:
        assert scores.sigmoid().tolist() == pytest.approx([0.4, 0.6], abs=0.01)
    else:
        assert (scores[1] - scores[0]).item() == pytest.approx(math.log(0.6 / 0.4), abs=0.02)


def test_a_position_that_is_always_examined_leaves_the_score_as_it_is():
    scores = torch.tensor([[40.0, -40.0]], requires_grad=True)
    positions, mask = torch.tensor([[0, 0]]), torch.ones(1, 2, dtype=torch.bool)
    logits = tower_of(1.0, 0.5)(scores, positions, mask, multiply=True)
    assert logits.tolist() == scores.tolist()
    logits.sum().backward()
    assert scores.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.slow
def test_the_trainer_ranks_the_more_relevant_item_first(tmp_path):
    """A is first in 5 of 6 lists. By clicks it is (5 * 0.4 + 0.2) / 6 = 0.367, and B (5 * 0.3 + 0.6) / 6 = 0.35."""
    rows = [{"item": ["A", "B"], "click": [0.4, 0.3], "place": [0, 1]}] * 5
    rows += [{"item": ["A", "B"], "click": [0.2, 0.6], "place": [1, 0]}]
    lists = datasets.Dataset.from_list(rows)
    schema = ListSchema(items=[Categorical("item", min_count=1)], position="place", max_list_length=2)
    processor = ListProcessor.from_lists(lists, schema=schema)
    found = {}
    for kind in ("none", "given"):
        torch.manual_seed(0)
        options = {"hidden_sizes": [8], "unknown_rate": 0, "position_input": "none", "position_tower": kind}
        dnn = DNNForReranking(DNNConfig.for_schema(processor.schema, **options))
        arguments = RerankTrainingArguments(
            str(tmp_path / kind),
            principled="none",
            max_steps=200,
            learning_rate=0.02,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            per_device_train_batch_size=10,
            save_strategy="no",
            eval_strategy="no",
            load_best_model_at_end=False,
            use_cpu=True,
            disable_tqdm=True,
        )
        RerankTrainer(dnn, arguments, lists, None, processor).train()
        scores = dnn.eval()(**processor([{"item": ["A", "B"], "place": [0, 1]}])).logits
        found[kind] = scores.sigmoid()[0].tolist()
    assert found["none"] == pytest.approx([0.367, 0.35], abs=0.01)
    assert found["given"] == pytest.approx([0.4, 0.6], abs=0.02)
    assert dnn.position_tower.propensities() == pytest.approx([1.0, 0.5], abs=0.02)


@pytest.mark.parametrize("kind", list(RERANKERS))
def test_the_tower_changes_the_loss_and_never_the_scores(kind):
    plain, flat = model(kind), with_tower(kind, bent=False)
    same = [name for name, value in plain.named_parameters() if torch.equal(value, flat.get_parameter(name))]
    assert len(same) == len(list(plain.parameters())), "the tower drew random numbers"
    bent, tensors = with_tower(kind), features(kind)
    outputs = [entry(**tensors, labels=LABELS) for entry in (plain, flat, bent)]
    assert torch.equal(outputs[0].logits, outputs[2].logits)
    losses = [output.loss.item() for output in outputs]
    assert losses[1] == pytest.approx(losses[0])
    assert losses[2] != pytest.approx(losses[0])
    outputs[2].loss.backward()
    assert bent.position_tower.weight.grad.abs().max() > 0


@pytest.mark.parametrize("display", ["given", "rows"])
def test_the_loss_reads_the_display_position(display):
    reranker, tensors = with_tower(position_input="none"), features("prm")
    reranker.config.position_tower = display
    tensors["position_ids"][0] = torch.tensor([3, 1, 0, 2, 5, 4])
    shown = torch.arange(6).repeat(3, 1)
    if display == "given":
        shown[0] = torch.tensor([3, 1, 0, 2, 5, 4])
    output = reranker(**tensors, labels=LABELS)
    examined = (-shown / 4.0).exp()  # the tower of ``with_tower``: position k is examined with probability exp(-k / 4)
    logits = (examined * output.logits.double().sigmoid()).logit()
    expected = binary_log_loss(logits, LABELS, mask=tensors["mask"])
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-5)


def test_every_pass_has_the_display_positions_of_the_given_order():
    """Without positions in the model all passes score alike, so the mean of their task losses is that of one pass."""
    reranker, tensors = with_tower(position_input="none"), features("prm")
    one = reranker(**tensors, labels=LABELS).loss
    losses = reranker(**tensors, labels=LABELS, objective=preset_objective("augmentation", seed=0)).losses
    assert float(losses["task_loss"]) == pytest.approx(float(one), rel=1e-5)


def test_a_starting_score_leaves_the_positions_to_the_tower():
    """Calibration fits one number per position, unless a tower of the given order learns them."""
    rows = [
        {"item": ["A", "B"], "click": [1, 0], "score": [0.3, 0.1]},
        {"item": ["B", "A"], "click": [1, 0], "score": [0.1, 0.3]},
        {"item": ["A", "B"], "click": [0, 1], "score": [0.3, 0.1]},
        {"item": ["B", "A"], "click": [1, 1], "score": [0.1, 0.3]},
    ]
    lists = datasets.Dataset.from_list(rows)
    schema = ListSchema(items=[Categorical("item", min_count=1)], initial_score="score", max_list_length=2)
    processor = ListProcessor.from_lists(lists, schema=schema)
    for kind, count in (("none", 2), ("rows", 2), ("given", 0)):
        options = {"hidden_sizes": [8], "initial_score": "start", "position_tower": kind}
        config = DNNConfig.for_schema(processor.schema, **options)
        calibrate_initial_score(config, processor, lists)
        assert len(config.initial_score_positions) == count


def test_saving_keeps_the_tower(tmp_path):
    reranker = with_tower()
    reranker.save_pretrained(tmp_path)
    loaded = type(reranker).from_pretrained(tmp_path)
    assert loaded.position_tower.propensities() == pytest.approx([math.exp(-k / 4) for k in range(8)], rel=1e-5)


def test_lists_longer_than_the_tower_are_rejected_with_labels():
    reranker = with_tower(position_input="none")
    batch = {"item_categorical": torch.ones(1, 9, 1, dtype=torch.int64), "item_dense": torch.zeros(1, 9, 2)}
    batch["initial_scores"] = torch.zeros(1, 9)
    assert reranker(**batch).logits.shape == (1, 9)
    with pytest.raises(InputError, match="lists of 9 slots: the model has positions for max_list_length=8"):
        reranker(**batch, labels=torch.zeros(1, 9))


def test_other_corrections_beside_the_tower_are_rejected(tmp_path):
    rows = [{"item": ["A", "B"], "click": [1, 0], "seen": [1.0, 0.5], "place": [0, 1]}] * 4
    lists = datasets.Dataset.from_list(rows)
    schema = ListSchema(items=[Categorical("item", min_count=1)], propensity="seen", max_list_length=2)
    for columns, options, message in (
        (schema, {}, "each of them corrects the position bias; leave position_tower out of the config"),
        (schema.replace(propensity=None), {"compute_loss_func": len}, "leave one of them out"),
        (schema.replace(propensity=None), {"task_loss": "lambda_loss"}, "lambda_loss cannot be corrected by it"),
        (schema.replace(propensity=None, position="place"), {"truncate_lists": True}, "leave truncate_lists out"),
    ):
        processor = ListProcessor.from_lists(lists, schema=columns)
        dnn = DNNForReranking(DNNConfig.for_schema(processor.schema, hidden_sizes=[8], position_tower="rows"))
        settings = {name: value for name, value in options.items() if name != "compute_loss_func"}
        arguments = RerankTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, **settings)
        custom = options.get("compute_loss_func")
        with pytest.raises(InputError, match=message):
            RerankTrainer(dnn, arguments, lists, lists, processor, compute_loss_func=custom)
    wrong = with_tower()
    wrong.config.task_loss = "neural_ndcg_loss"
    with pytest.raises(InputError, match="expected a task_loss of binary_log_loss, softmax_loss, attention_rank_loss"):
        wrong(**features("prm"), labels=LABELS)
    unordered = replace(ListProcessor.from_lists(lists, schema=schema).schema, position="none")
    with pytest.raises(InputError, match="no initial order"):
        DNNConfig.for_schema(unordered, position_tower="given")
