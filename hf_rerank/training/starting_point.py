"""The starting point of training: calibration of an earlier ranker's scores, and rates of unknown values.

Both are numbers in the config that are estimated from lists before a model is built or trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rerank.errors import InputError
from hf_rerank.losses import LOSSES_WITHOUT_PROBABILITIES, TASK_LOSSES, check_propensity_loss
from hf_rerank.models.config import RerankerConfig
from hf_rerank.processing import ListProcessor
from hf_rerank.processing.encoding_report import EncodingReport
from hf_rerank.processing.ragged import concatenate
from hf_rerank.schema import NO_ORDER, Categorical
from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.validation import Lists, tables_of

# Largest number of lists that are read, spread evenly over all.
LISTS = 20_000
BATCH = 2_000
LOWEST_RATE = 0.01
POSITION_PENALTY = 1e-4
# A column with a larger share of unknown values is named in a warning.
LARGE_SHARE = 0.5


def calibrate_initial_score(config: RerankerConfig, processor: ListProcessor, lists: Any) -> None:
    """Fills in ``initial_score_scale``, ``_offset`` and ``_positions`` of a config that reads such a score.

    They minimize the task loss of ``scale * score + offset + number of the position`` alone, over training lists:
    under the log-loss this is Platt scaling with a bias per position. A shift-invariant loss centres the scores. A
    loss that trains an order, not probabilities, does not determine a scale; the softmax loss is used instead.

    Args:
        config: Config with the task loss of the training.
        processor: Encodes the lists.
        lists: Training lists, a ``datasets`` Dataset, with scores of a ranker that has not learned from them.

    A model that does not read the given order (``position_input="none"``) must not get it through the score either:
    trees that read the order are refused, and a column of scores, from which the order may come, gives a warning.

    Raises:
        InputError: The lists have no scores, or all of them are equal; or the config leaves the given order out and
            the trees read it.
    """
    if config.position_input == "none":
        _check_without_order(config, processor)
    if not hasattr(lists, "select"):
        raise InputError("calibrating the earlier ranker's score needs training lists with a length: this is a stream")
    chosen = _sample_evenly(lists)
    parts, start = [], 0
    for table in tables_of(chosen, BATCH):
        parts.append(processor.encode(Lists.from_arrow(table, processor.schema, with_labels=True, first=start))[0])
        start += table.num_rows
    if any("initial_scores" not in part.rows for part in parts):
        raise InputError(
            "the training lists have no scores of an earlier ranker: name their column as initial_score in the "
            "schema, or train with --on-top-of lambdamart"
        )
    arrays = {name: torch.from_numpy(array) for name, array in concatenate(parts).pad().items()}
    name = config.task_loss_name
    loss: Callable[..., Tensor] = TASK_LOSSES["softmax_loss" if name in LOSSES_WITHOUT_PROBABILITIES else name]
    if "propensities" in arrays and config.propensity_floor < 1:
        check_propensity_loss(name)
        loss = partial(loss, propensities=arrays["propensities"].clamp(min=config.propensity_floor))
    # A position tower of the given order learns what each position adds to the clicks.
    without = config.position_input == "none" or config.position_tower == "given"
    positions = 0 if without else config.max_list_length
    found = fit_calibration(arrays, loss, positions=positions)
    config.initial_score_scale, config.initial_score_offset, config.initial_score_positions = found


def calibrate_for_training(
    config: RerankerConfig, processor: ListProcessor, lists: Any, arguments: RerankTrainingArguments
) -> RerankerConfig:
    """Calibrates the earlier ranker's score for the loss of a training, if the config reads that score.

    Args:
        config: Config of a model that is about to be trained; changed in place.
        processor: Encodes the lists.
        lists: As in ``calibrate_initial_score``.
        arguments: Arguments of the training, which determine its task loss.

    Returns:
        The same config.

    Raises:
        InputError: As in ``calibrate_initial_score``.
    """
    if config.initial_score != "none":
        config.task_loss = arguments.task_loss or arguments.objective().task_loss or config.task_loss
        calibrate_initial_score(config, processor, lists)
    return config


def warn_of_biased_start(config: RerankerConfig) -> None:
    """Warns of a position tower in a model that starts from an earlier ranker's score."""
    if config.position_tower != "none" and config.initial_score == "start":
        warnings.warn(
            f"position_tower={config.position_tower!r} with initial_score='start': the starting score contains the "
            "position bias of the clicks that the earlier ranker learned from, so the tower learns too flat a curve; "
            "set initial_score='feature'",
            UserWarning,
            stacklevel=2,
        )


def _check_without_order(config: RerankerConfig, processor: ListProcessor) -> None:
    if processor.trees is not None and processor.trees.reads_position:
        raise InputError(
            "position_input='none' leaves the given order out, and the trees read it: learn trees that do not, with "
            "--trees-read-order no"
        )
    if processor.trees is None and processor.schema.position != NO_ORDER:
        warnings.warn(
            f"position_input='none' leaves the given order out, but initial_score={config.initial_score!r} reads "
            f"column {processor.schema.initial_score!r}, and lists sorted by that score reveal the order; a model "
            "without the order has initial_score='none'",
            UserWarning,
            stacklevel=3,
        )


def fit_calibration(
    tensors: Mapping[str, Tensor], loss: Callable[..., Tensor], *, positions: int
) -> tuple[float, float, list[float]]:
    """Fits the scale, the offset and one number per position that minimize the loss of the scores alone.

    Args:
        tensors: Tensors of a batch of labelled lists, with ``initial_scores``.
        loss: Task loss of logits.
        positions: Number of positions. 0: no numbers per position.

    Raises:
        InputError: All scores are equal, or the loss has no minimum.
    """
    mask, labels, places = tensors["mask"], tensors["labels"], tensors["position_ids"]
    scores = tensors["initial_scores"].double()
    spread, middle = float(scores[mask].std()), float(scores[mask].mean())
    if not spread > 0:
        raise InputError("the scores of the earlier ranker are all equal: there is nothing to start from")
    # In units of their spread, so that the steps suit scores of any size.
    units = (scores - middle) / spread
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    of_position = torch.zeros(positions, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, offset, of_position], max_iter=200, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        logits = units * scale + offset
        if positions:
            logits = logits + of_position[places.clamp(max=positions - 1)]
        value = loss(logits, labels, mask=mask, weights=tensors.get("weights"))
        # A weak L2 penalty: without it positions and offset are not identified, and rare positions are unbounded.
        value = value + POSITION_PENALTY * of_position.square().sum()
        value.backward()
        return value

    optimizer.step(step)
    numbers = [*of_position.detach().tolist(), scale.item(), offset.item()]
    if not all(math.isfinite(number) for number in numbers):
        raise InputError("the scores of the earlier ranker cannot be calibrated: their loss has no minimum")
    return scale.item() / spread, offset.item() - scale.item() * middle / spread, numbers[:positions]


def match_unknown_values(config: RerankerConfig, processor: ListProcessor, lists: Any) -> dict[str, float]:
    """Fills in ``item_unknown_rates`` and ``user_unknown_rates`` of a config from the unknown values of new lists.

    A value that training has not seen is scored with the unknown value's row. If training replaces as many ids as are
    unknown in new lists, that row is trained on the cases it will see, and the rows of the others cannot memorize the
    training lists. A column with more than half of its values unknown is named in a warning.

    Args:
        config: Config of a model that is about to be trained.
        processor: Encodes the lists.
        lists: A ``datasets`` Dataset of evaluation lists.

    Returns:
        Categorical feature of items or users -> the share of its values that is unknown.
    """
    report = EncodingReport()
    for table in tables_of(_sample_evenly(lists), BATCH):
        report.add(processor.encode(Lists.from_arrow(table, processor.schema), truncate=True)[1])
    shares = report.unknown_share()
    found: dict[str, float] = {}
    for part, name in (("items", "item"), ("user", "user")):
        tables = [feature.name for feature in processor.schema.features(part, Categorical)]
        found |= {table: shares[table] for table in tables}
        setattr(config, f"{name}_unknown_rates", [max(LOWEST_RATE, shares[table]) for table in tables])
    for table, share in found.items():
        if share > LARGE_SHARE:
            warnings.warn(
                f"column {table!r}: {share:.0%} of its values in the evaluation lists are unknown (not in the "
                "training lists), so it says little about new lists: leave it out, or give a column that new items "
                "share with old ones, such as a category",
                UserWarning,
                stacklevel=3,
            )
    return found


def _sample_evenly(lists: Any) -> Any:
    """Selects at most ``LISTS`` of these lists, evenly spread."""
    count = len(lists)
    return lists if count <= LISTS else lists.select(np.arange(LISTS) * count // LISTS)
