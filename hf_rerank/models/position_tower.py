"""The position tower: how often each display position is examined, learned together with the model."""

import math

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
    probability ``p`` that a position is examined, relative to the position examined most among those that occurred in
    training; the model's score ``s`` is then left with the relevance. Under the binary log-loss the two probabilities
    are multiplied, as in PAL (Guo et al. 2019): the logit of a click is that of ``p * sigmoid(s)``. Under a softmax
    over the list ``log p`` is added to the score, as in the shallow tower of Zhao et al. 2019: an item gets a share
    ``p * exp(s)`` of its list's clicks.

    Args:
        num_positions: Number of display positions.
    """

    occurs: Tensor

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        # Zeros draw no random numbers: the rest of the model starts as it would without a tower.
        self.weight = nn.Parameter(torch.zeros(num_positions))
        # The positions that occurred in training.
        self.register_buffer("occurs", torch.zeros(num_positions, dtype=torch.bool))

    def reset_parameters(self) -> None:
        """All positions are examined equally often, and none has occurred."""
        init.zeros_(self.weight)
        init.zeros_(self.occurs)

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
        # Positions at padding follow those of the items, and may lie outside the table.
        positions = torch.where(mask, positions, 0)
        counts = torch.zeros_like(self.occurs, dtype=torch.int64)
        occurs = self.occurs | (counts.scatter_add(0, positions.flatten(), mask.flatten().long()) > 0)
        if self.training:
            self.occurs.copy_(occurs)
        log_examined = torch.where(mask, self._log_curve(occurs)[positions], 0.0)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not multiply:
            return logits + log_examined
        real = torch.where(mask, logits, 0.0)
        # The logit of p * sigmoid(s) is s + log p - log(1 + (1 - p) exp(s)).
        not_examined = (-torch.expm1(log_examined)).clamp(min=SMALLEST).log()
        clicks = torch.where(
            log_examined < 0, real + log_examined - F.softplus(real + not_examined), real + log_examined
        )
        return torch.where(mask, clicks, logits)

    @torch.no_grad()
    def propensities(self) -> list[float]:
        """The probability that each position is examined, from position 0; the largest is 1.

        NaN for a position that did not occur in training.
        """
        curve = self._log_curve(self.occurs).exp().tolist()
        return [value if known else math.nan for value, known in zip(curve, self.occurs.tolist(), strict=True)]

    def _log_curve(self, occurs: Tensor) -> Tensor:
        """The logarithms of the curve, at most 0 where a position occurs."""
        weight = self.weight.float()
        # The factor is left out of the gradient, whose norm would otherwise dominate that of the model.
        curve = weight + (STEP - 1) * weight.detach()
        return curve - curve.masked_fill(~occurs, -math.inf).max()
