"""The task loss of an objective: by name, or the Trainer's ``compute_loss_func``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hf_rerank.losses import check_position_tower_loss
from hf_rerank.models.base import PreTrainedReranker
from hf_rerank.principled import PrincipledObjective


def replace_task_loss(
    objective: Callable[..., dict[str, Tensor]], function: Callable[..., Tensor] | None
) -> Callable[..., dict[str, Tensor]]:
    """Replaces an objective's task loss by ``function(outputs, labels, num_items_in_batch=None)``, in every pass.

    Args:
        objective: As in ``PreTrainedReranker.forward``.
        function: Called with the outputs of one pass, and the labels of the same lists. None: the objective is
            returned unchanged.
    """
    if function is None:
        return objective

    def with_function(score: Any, position_ids: Tensor, labels: Tensor, mask: Tensor, _: Any) -> dict[str, Tensor]:
        def loss(output: Any, lists: Tensor | None = None) -> Tensor:
            return function(output, labels if lists is None else labels[lists], num_items_in_batch=None)

        return objective(score, position_ids, labels, mask, loss)

    return with_function


def set_task_loss(
    objective: PrincipledObjective, model: PreTrainedReranker, task_loss: str | None, *, propensities: bool = False
) -> PrincipledObjective:
    """Gives model and objective one task loss: ``task_loss``, else the objective's, else the config's.

    Raises:
        InputError: The lists have propensities, or the model a position tower, and the loss cannot be corrected.
    """
    asked = task_loss or objective.task_loss
    if asked is not None:
        model.config.task_loss = asked
    if model.config.position_tower != "none":
        check_position_tower_loss(model.config.task_loss_name)
    if propensities and model.config.propensity_floor < 1:
        model.check_propensity_loss()
    return objective.for_task_loss(model.config.task_loss_name)
