"""The position tower: how often each display position is examined, learned together with the model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

# Adam moves a weight by about the learning rate per step, and a curve spans several units.
STEP = 30.0
# Smallest probability that a position is not examined, so that its logarithm is finite.
SMALLEST = 1e-7


class PositionTower(nn.Module):
    """A table with one number per display position, added to the model's scores in training only.

    A click requires a relevant item and an examined position (the position-based click model). The tower is the
    probability ``p`` that a position is examined, relative to the position examined most; the model's score ``s`` is
    then left with the relevance. Under the binary log-loss the two probabilities are multiplied, as in PAL (Guo et al.
    2019): the logit of a click is that of ``p * sigmoid(s)``. Under all other losses ``log p`` is added to the score,
    as in the shallow tower of Zhao et al. 2019; under a softmax over the list this is the same click model.

    Args:
        num_positions: Number of display positions.
    """

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        # Zeros draw no random numbers: the rest of the model starts as it would without a tower.
        self.weight = nn.Parameter(torch.zeros(num_positions))

    def reset_parameters(self) -> None:
        """All positions are examined equally often."""
        init.zeros_(self.weight)

    def forward(self, logits: Tensor, positions: Tensor, mask: Tensor, *, multiply: bool) -> Tensor:
        """Computes the logits of clicks.

        Args:
            logits: float [B, L], the model's scores.
            positions: int64 [B, L], the display position of each slot's item, from 0.
            mask: bool [B, L], True at real items; padding is returned unchanged.
            multiply: Multiply probabilities. False: add logarithms to scores.

        Returns:
            [B, L], float32 at least.
        """
        curve = self._log_curve()
        # Positions at padding follow those of the items, and may lie outside the table.
        log_examined = torch.where(mask, curve[torch.where(mask, positions, 0)], 0.0)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not multiply:
            return logits + log_examined
        not_examined = (-torch.expm1(log_examined)).clamp(min=SMALLEST)
        real = torch.where(mask, logits, 0.0)
        # The logit of p * sigmoid(s) is s + log p - log(1 + (1 - p) exp(s)).
        return torch.where(mask, real + log_examined - F.softplus(real + not_examined.log()), logits)

    @torch.no_grad()
    def propensities(self) -> list[float]:
        """The probability that each position is examined, from position 0; the largest is 1."""
        return self._log_curve().exp().tolist()

    def _log_curve(self) -> Tensor:
        curve = STEP * self.weight.float()
        return curve - curve.max()
