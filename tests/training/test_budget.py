"""Batch size and epochs by the number of lists: against numbers worked out by hand."""

import warnings

import pytest

from hf_rerank.errors import InputError
from hf_rerank.training import RerankTrainingArguments
from hf_rerank.training.budget import fill_in_budget


@pytest.mark.parametrize(
    ("lists", "batch", "epochs"),
    [
        (113, 16, 40),  # 8 steps per epoch: 50 epochs would make 400
        (3_200, 32, 5),  # 100 steps per epoch
        (7_796, 64, 5),
        (1_000_000, 256, 5),
    ],
)
def test_small_logs_get_small_batches_and_more_epochs(tmp_path, lists, batch, epochs):
    args = RerankTrainingArguments(str(tmp_path))
    fill_in_budget(args, lists)
    assert (args.per_device_train_batch_size, args.num_train_epochs) == (batch, epochs)


def test_what_is_given_stays(tmp_path):
    args = RerankTrainingArguments(str(tmp_path), per_device_train_batch_size=8, num_train_epochs=3)
    fill_in_budget(args, 5_000)
    assert (args.per_device_train_batch_size, args.num_train_epochs) == (8, 3)


def test_accumulated_batches_count_together(tmp_path):
    args = RerankTrainingArguments(str(tmp_path), gradient_accumulation_steps=4)
    fill_in_budget(args, 7_796)
    assert args.per_device_train_batch_size == 16


def test_very_few_steps_are_told(tmp_path):
    args = RerankTrainingArguments(str(tmp_path), per_device_train_batch_size=256, num_train_epochs=10)
    with pytest.warns(UserWarning, match="takes 10 steps .113 lists in batches of 256.: too few"):
        fill_in_budget(args, 113)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill_in_budget(RerankTrainingArguments(str(tmp_path)), 113)


def test_negative_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="is -1: expected at least 1; leave it out to let the number of training li"):
        RerankTrainingArguments(str(tmp_path), per_device_train_batch_size=-1)


def test_a_short_training_has_no_warm_up_unless_steps_are_given(tmp_path):
    for given, steps, expected in ((0.1, 20, 0), (0.1, 200, 0.1), (5, 20, 5)):
        args = RerankTrainingArguments(str(tmp_path), max_steps=steps, warmup_steps=given)
        fill_in_budget(args, 5_000)
        assert args.warmup_steps == expected


def test_a_stream_gets_the_largest_batch(tmp_path):
    args = RerankTrainingArguments(str(tmp_path), max_steps=500)
    fill_in_budget(args, None)
    assert args.per_device_train_batch_size == 256
