"""Numbers split into bins: against values worked out by hand."""

import pytest
import torch
from test_relative_features import features, model

from hf_rerank.errors import InputError
from hf_rerank.models.auto import RERANKERS
from hf_rerank.models.embeddings import piecewise_linear


def test_bins_by_hand():
    # Normal probabilities 0.5, 0.8413 (one standard deviation), and nearly 0 and 1. Four bins of 0.25 each:
    # 0.5 fills two; 0.8413 fills three and 0.0913 / 0.25 = 0.3654 of the fourth.
    values = torch.tensor([[0.0], [1.0], [-9.0], [9.0]])
    expected = [[1, 1, 0, 0], [1, 1, 1, 0.36538], [0, 0, 0, 0], [1, 1, 1, 1]]
    torch.testing.assert_close(piecewise_linear(values, 4), torch.tensor(expected), rtol=0, atol=1e-4)


def test_the_bins_of_a_number_stand_one_after_another():
    found = piecewise_linear(torch.tensor([[[-9.0, 9.0]]]), 3)
    assert found.tolist() == [[[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]]


@pytest.mark.parametrize("kind", list(RERANKERS))
def test_every_model_reads_them(kind):
    plain, split = model(kind), model(kind, dense_bins=4)
    assert split.item_embedding.item_width == plain.item_embedding.item_width + 2 * 4
    split.train()
    tensors = features(kind)
    logits = split(**tensors).logits
    logits[tensors["mask"]].sum().backward()
    assert torch.isfinite(logits[tensors["mask"]]).all()


def test_a_negative_number_is_refused():
    with pytest.raises(Exception, match="dense_bins is -1") as caught:
        model(dense_bins=-1)
    assert isinstance(caught.value, InputError) or isinstance(caught.value.__cause__, InputError)
