"""``compute_loss_func`` of the Trainer in place of the task loss of an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def with_custom_loss(
    objective: Callable[..., dict[str, Tensor]], function: Callable[..., Tensor] | None
) -> Callable[..., dict[str, Tensor]]:
    """The objective whose task loss is ``function(outputs, labels, num_items_in_batch=None)``, in every pass.

    Args:
        objective: As of ``PreTrainedReranker.forward``.
        function: Its outputs are those of one pass, and its labels those of the same lists. None: the objective stays
            as it is.
    """
    if function is None:
        return objective

    def with_function(score: Any, position_ids: Tensor, labels: Tensor, mask: Tensor, _: Any) -> dict[str, Tensor]:
        def loss(output: Any, lists: Tensor | None = None) -> Tensor:
            return function(output, labels if lists is None else labels[lists], num_items_in_batch=None)

        return objective(score, position_ids, labels, mask, loss)

    return with_function
