"""Contracts that every re-ranker of the library fulfils, and detection of re-rankers that break them.

A new model needs a row in the table, and an entry in ``TINY`` of conftest.py if its defaults are large. That its ONNX
graph gives the same ranking is checked in tests/inference/test_onnx_export.py, over the same table.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_rerank.errors import InputError
from hf_rerank.models.auto import RERANKERS
from hf_rerank.models.dnn import DNNConfig, DNNForReranking
from hf_rerank.principled import PRESETS
from hf_rerank.testing import CONTRACTS, SLOW_CONTRACTS, check_reranker
from hf_rerank.testing.candidate import Candidate, assert_same_gradients, gradients
from hf_rerank.testing.objectives import at_one_step

# Options that turn off loss terms that do not concern items.
ITEMS_ALONE: dict[str, dict[str, Any]] = {"pear": {"list_loss_weight": 0}}
# Other objectives show other orders, which DLCM reads by its own code and all others by shared code in layers.py.
# Every model is compiled with the default objective.
FEWER = {"compiled_equals_eager_with_other_objectives": ("dlcm", "prm")}
SLOW = {*SLOW_CONTRACTS, "compiled_equals_eager", "edge_lists_are_finite"}
EVERY = [
    pytest.param(name, contract, marks=[pytest.mark.slow] if contract in SLOW else [])
    for contract in CONTRACTS
    for name in FEWER.get(contract, RERANKERS)
]


@pytest.mark.parametrize(("name", "contract"), EVERY)
def test_contract(name: str, contract: str, tiny: Any) -> None:
    CONTRACTS[contract](Candidate(RERANKERS[name][1], tiny.config(name), ITEMS_ALONE.get(name, {})))


class ReadsSlots(DNNForReranking):
    """Scores depend on the slot."""

    def score(self, context, position_ids):
        output = super().score(context, position_ids)
        output.logits = output.logits + 0.1 * torch.arange(output.logits.shape[1])
        return output


class ReadsOtherLists(DNNForReranking):
    """Scores depend on the other lists of the batch."""

    def score(self, context, position_ids):
        output = super().score(context, position_ids)
        output.logits = output.logits + output.logits.detach()[:, :1].clamp(-1, 1).mean()
        return output


class IgnoresPositionInput(DNNForReranking):
    """Reads the order even with ``position_input="none"``."""

    def score(self, context, position_ids):
        output = super().score(context, position_ids)
        if position_ids.dim() == 2:
            output.logits = output.logits - 0.1 * position_ids
        return output


class IgnoresPadding(DNNForReranking):
    """Padding gets an ordinary score."""

    def score(self, context, position_ids):
        output = super().score(context, position_ids)
        output.logits = torch.where(context["mask"], output.logits, 0.0)
        return output


class HasUnusedWeights(DNNForReranking):
    """One layer is not used."""

    def __init__(self, config):
        super().__init__(config)
        self.unused = torch.nn.Linear(2, 2)
        self.post_init()


class ForgetsADenseFeature(DNNForReranking):
    """Accepts any number of dense features."""

    def embed(self, batch):
        if batch.item_dense is not None:
            width = self.config.num_item_dense
            batch.item_dense = torch.nn.functional.pad(batch.item_dense, (0, width))[..., :width]
        return super().embed(batch)


# Broken model -> the contract that it breaks.
BROKEN = {
    ReadsSlots: "slots_carry_no_meaning",
    ReadsOtherLists: "batch_of_one_equals_batch_of_many",
    IgnoresPositionInput: "position_input",
    IgnoresPadding: "bf16_is_close",
    HasUnusedWeights: "every_parameter_gets_a_gradient_and_moves",
    ForgetsADenseFeature: "input_of_another_processor",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_model_fails_its_contract(broken: type, tiny: Any) -> None:
    contract = BROKEN[broken]
    others = [name for name in CONTRACTS if name != contract]
    check_reranker(DNNForReranking, tiny.config("dnn"), skip=others)
    with pytest.raises(AssertionError, match=f"{broken.__name__} breaks the contract '{contract}'"):
        check_reranker(broken, tiny.config("dnn"), skip=others)


@pytest.mark.slow
def test_contracts_hold_for_a_config_with_one_feature() -> None:
    """One dense feature, no tables, no user, no history."""
    config = DNNConfig(num_item_dense=1, hidden_sizes=[4])
    check_reranker(DNNForReranking, config, skip=[name for name in CONTRACTS if "bf16" in name or "compiled" in name])


def test_wrong_arguments_of_check_reranker_are_rejected(tiny: Any) -> None:
    config = tiny.config("dnn")
    with pytest.raises(InputError, match="expected a subclass of PreTrainedReranker"):
        check_reranker(torch.nn.Linear, config)
    with pytest.raises(InputError, match="expected an instance"):
        check_reranker(DNNForReranking, DNNConfig)
    with pytest.raises(InputError, match="did you mean 'rank'"):
        check_reranker(DNNForReranking, config, skip=["rankk"])


@pytest.mark.slow
@pytest.mark.parametrize("name", RERANKERS)
def test_gradients_and_losses_of_two_processes_equal_those_of_one(name, tiny, two_processes):
    """With every preset, in float64; the two processes run once for all models."""
    model = tiny.model(name).double().train()
    for preset in PRESETS:
        loss = model(**tiny.lists(), objective=at_one_step(preset)).loss
        loss.backward()
        expected = gradients(model)
        ranks = [load_file(two_processes / name / f"{preset}-{rank}.safetensors") for rank in range(2)]
        assert [rank.pop("processes").item() for rank in ranks] == [2, 2]
        losses = [rank.pop("loss").item() for rank in ranks]
        assert losses[0] != losses[1], "each process had its own lists"
        assert sum(losses) / 2 == pytest.approx(loss.item(), abs=1e-12)
        for rank in ranks:
            assert_same_gradients(rank, expected, 1e-12)
