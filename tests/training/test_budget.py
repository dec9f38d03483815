"""Default batch size and epochs for a number of lists, against written-out numbers."""

import warnings

import pytest

from hf_rerank.errors import InputError
from hf_rerank.training import RerankTrainer, RerankTrainingArguments
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


def test_given_values_are_kept(tmp_path):
    args = RerankTrainingArguments(str(tmp_path), per_device_train_batch_size=8, num_train_epochs=3)
    fill_in_budget(args, 5_000)
    assert (args.per_device_train_batch_size, args.num_train_epochs) == (8, 3)


def test_accumulated_batches_count_as_one_batch(tmp_path):
    args = RerankTrainingArguments(str(tmp_path), gradient_accumulation_steps=4)
    fill_in_budget(args, 7_796)
    assert args.per_device_train_batch_size == 16


def test_very_few_steps_give_a_warning(tmp_path):
    args = RerankTrainingArguments(str(tmp_path), per_device_train_batch_size=256, num_train_epochs=10)
    with pytest.warns(UserWarning, match="takes 10 steps .113 lists in batches of 256.: too few"):
        fill_in_budget(args, 113)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill_in_budget(RerankTrainingArguments(str(tmp_path)), 113)


def test_negative_batch_sizes_are_rejected(tmp_path):
    with pytest.raises(InputError, match="is -1: expected at least 1; leave it out to let the number of training li"):
        RerankTrainingArguments(str(tmp_path), per_device_train_batch_size=-1)


def test_short_trainings_have_no_warmup_unless_given_in_steps(tmp_path):
    for given, steps, expected in ((0.1, 20, 0), (0.1, 200, 0.1), (5, 20, 5)):
        args = RerankTrainingArguments(str(tmp_path), max_steps=steps, warmup_steps=given)
        fill_in_budget(args, 5_000)
        assert args.warmup_steps == expected


def test_streams_get_the_largest_batch_size(tmp_path):
    args = RerankTrainingArguments(str(tmp_path), max_steps=500)
    fill_in_budget(args, None)
    assert args.per_device_train_batch_size == 256


def test_the_same_arguments_serve_several_trainers(tmp_path, lists, processor, make_model):
    """3 steps per epoch of 48 lists: 40 epochs, the most; 15 of 240 lists: 27 make more than 400 steps."""
    args = RerankTrainingArguments(str(tmp_path), use_cpu=True)
    given = args.to_dict()
    few = lists["train"].select(range(48))
    first = RerankTrainer(make_model(), args, few, processing_class=processor)
    second = RerankTrainer(make_model(), args, lists["train"], lists["validation"], processor)
    assert (first.args.num_train_epochs, second.args.num_train_epochs) == (40, 27)
    assert (first.args.load_best_model_at_end, second.args.load_best_model_at_end) == (False, True)
    assert args.to_dict() == given
