"""The initial ranker's score as a feature, and as the score from which training starts."""

import pytest
import torch
from test_relative_features import features, model

from hf_rerank.errors import InputError
from hf_rerank.models.auto import RERANKERS
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.principled import preset_objective

SCALE = {"initial_score_scale": 2.0, "initial_score_offset": -1.0}


@pytest.mark.parametrize("kind", list(RERANKERS))
def test_an_untrained_model_returns_the_scaled_initial_scores(kind):
    start, tensors = model(kind, initial_score="start", **SCALE), features(kind)
    logits, mask = start(**tensors).logits, tensors["mask"]
    assert torch.equal(logits[mask], (2 * tensors["initial_scores"] - 1)[mask])
    assert (logits[~mask] == torch.finfo(logits.dtype).min).all()


@pytest.mark.parametrize("kind", list(RERANKERS))
def test_training_updates_every_parameter(kind):
    start, tensors = model(kind, initial_score="start", **SCALE).train(), features(kind)
    labels = torch.tensor([[1.0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    before = {name: value.clone() for name, value in start.named_parameters()}
    optimizer = torch.optim.SGD(start.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        start(**tensors, labels=labels).loss.backward()
        optimizer.step()
    same = [name for name, value in start.named_parameters() if torch.equal(value, before[name])]
    assert [name for name in same if "history" not in name and "list_" not in name] == []


@pytest.mark.parametrize("kind", ["prm", "dlcm"])
def test_initial_score_positions_are_added_in_the_given_order(kind):
    numbers = [0.5, 0.25, 0.0, -0.25, -0.5, -1.0, -2.0, -4.0]
    start, tensors = model(kind, initial_score="start", initial_score_positions=numbers, **SCALE), features(kind)
    tensors["position_ids"][0] = torch.tensor([3, 1, 0, 2, 5, 4])
    expected = 2 * tensors["initial_scores"] - 1 + torch.tensor(numbers)[tensors["position_ids"]]
    mask = tensors["mask"]
    torch.testing.assert_close(start(**tensors).logits[mask], expected[mask])


def test_initial_score_positions_need_one_number_per_position():
    with pytest.raises(Exception, match="expected one for each of 8 positions"):
        model(initial_score="start", initial_score_positions=[1.0])


def test_a_model_that_ignores_the_order_rejects_initial_score_positions():
    with pytest.raises(Exception, match="ignores the given order, and initial_score_positions reads it"):
        model(initial_score="start", position_input="none", initial_score_positions=[1.0] * 8)


def test_all_principled_passes_start_from_the_initial_score():
    start, tensors = model(initial_score="start", **SCALE), features("prm")
    labels = torch.zeros(3, 6)
    losses = start(**tensors, labels=labels, objective=preset_objective("scaled", seed=0)).losses
    # The network's part is still 0, so the order of the items does not change scores.
    assert losses["convergence_loss"].item() == 0.0
    assert losses["adversarial_loss"].item() == 0.0


def test_the_initial_score_is_read_only_if_configured_as_a_feature():
    tensors = features("prm")
    other = {**tensors, "initial_scores": tensors["initial_scores"] + 1.0}
    read, unread = model(initial_score="feature", **SCALE), model()
    assert not torch.equal(read(**tensors).logits, read(**other).logits)
    assert torch.equal(unread(**tensors).logits, unread(**other).logits)


def test_lists_without_initial_scores_are_rejected():
    tensors = features("prm")
    del tensors["initial_scores"]
    with pytest.raises(InputError, match=r"reads the earlier ranker's score and the lists have none"):
        model(initial_score="feature")(**tensors)


def test_saving_keeps_initial_score_settings_and_learned_weights(tmp_path):
    start, tensors = model(initial_score="start", **SCALE), features("prm")
    with torch.no_grad():
        start.scorer.weight.normal_()
    start.save_pretrained(tmp_path)
    loaded: PreTrainedReranker = type(start).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**tensors).logits, start(**tensors).logits)
