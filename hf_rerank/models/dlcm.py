"""DLCM: the deep listwise context model (Ai et al., SIGIR 2018)."""

from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from hf_rerank.errors import InputError
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput, mask_logits
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import ItemEmbedding
from hf_rerank.models.layers import Context, SharedDropout, check_sizes, position_vectors
from hf_rerank.principled.orders import order_from_positions
from hf_rerank.schema import ListBatch


@strict
class DLCMConfig(RerankerConfig):
    """Config of ``DLCMForReranking``.

    Args:
        hidden_size: Width of the GRU.
        num_hidden_layers: Number of GRU layers.
        input_size: Width of the GRU's input: an item's vector is extended to it by the output of a two-layer ELU
            network. Vectors of at least this width are read as they are. 0: no such network.
        scoring: How an item is scored against the list: ``multiply``, ``multi`` or ``add``; see the model.
        num_scoring_heads: Number of heads of ``multi`` and ``add``.
        hidden_dropout_prob: Dropout of the item's vector, in [0, 1).
        position_input: ``sequence``: the GRU reads the items in the given order. ``sequence+embedding``: a learnable
            vector per position is also added to each item's input.
    """

    model_type: ClassVar[str] = "rerank_dlcm"
    own_task_loss: ClassVar[str] = "attention_rank_loss"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"hidden_size": 1024, "input_size": 1024, "scoring": "multi", "task_loss": "own"},
        "librerank-ad": {"input_size": 0, "hidden_dropout_prob": 0.2, "task_loss": "own"},
        "librerank-prm": {"input_size": 0, "hidden_dropout_prob": 0.2, "task_loss": "own"},
    }

    hidden_size: int = 64
    num_hidden_layers: int = 1
    input_size: int = 256
    scoring: Literal["multiply", "multi", "add"] = "multiply"
    num_scoring_heads: int = 3
    hidden_dropout_prob: float | int = 0.0
    position_input: Literal["sequence", "sequence+embedding"] = "sequence"  # type: ignore[assignment]

    def validate_network(self) -> None:
        """Checks ranges and combinations of options, which type checks do not cover."""
        check_sizes(
            self.hidden_dropout_prob,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_scoring_heads=self.num_scoring_heads,
        )
        if self.input_size < 0:
            raise InputError(f"input_size is {self.input_size}: expected at least 0")


class DLCMForReranking(PreTrainedReranker):
    """A GRU reads the list from the last position to the first; each item is then scored against the last state.

    ``o_i, s = GRU(z_n, ..., z_1)``, ``z = [x ; ELU network of x]``: ``s`` is the state after the top item, as in the
    paper (section 3.3) and the authors' code. The score of an item is

    - ``multiply``: ``V . (o_i * tanh(W s + b))``, LibRerank's form of the paper's equation;
    - ``multi``: ``mean_h v_h (o_i . tanh(W_h s + b_h))``, the authors' example setting, three heads;
    - ``add``: ``mean_h v_h u_h . tanh(U_h o_i + W_h s + b_h)``, their default.

    The paper's loss, ``task_loss="own"``, is the attention-rank loss. Under it, and under every shift-invariant loss,
    the list's smallest score is subtracted from all its scores, as in the authors' code; under the binary log-loss it
    is not, since that would fix the lowest item at a probability of one half, without a gradient. LibRerank reads the
    list from the top and normalises over the batch; this model does neither. The GRU is torch's, which applies the
    reset gate after multiplying by the state's matrix; TensorFlow's, which the authors used, applies it before.

    When to choose it: if the given order is informative and lists are short. It is the only model here that needs an
    order: it has no ``position_input="none"``. It reads items one after another; PRM and SetRank read all items at
    once, which is faster on a GPU.
    """

    config: DLCMConfig
    # A widened item vector has the same width whatever the features are.
    reads_features: ClassVar[tuple[str, ...]] = ("gru.weight_ih_l0", "positions.weight")

    def __init__(self, config: DLCMConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        width, more = self.item_embedding.width, config.input_size - self.item_embedding.width
        self.widening = None
        if more > 0:
            half = max(1, config.input_size // 2)
            self.widening = nn.Sequential(nn.Linear(width, half), nn.ELU(), nn.Linear(half, more), nn.ELU())
            width = config.input_size
        with_vectors = config.position_input == "sequence+embedding"
        self.positions = nn.Embedding(config.max_list_length, width) if with_vectors else None
        self.dropout = SharedDropout(config.hidden_dropout_prob, width)
        self.gru = nn.GRU(width, config.hidden_size, config.num_hidden_layers, batch_first=True)
        heads = 1 if config.scoring == "multiply" else config.num_scoring_heads
        self.of_state = nn.Linear(config.hidden_size, heads * config.hidden_size)
        self.of_item = None
        if config.scoring == "add":
            self.of_item = nn.Linear(config.hidden_size, heads * config.hidden_size, bias=False)
            self.of_both = nn.Linear(config.hidden_size, heads, bias=False)
        self.scorer = nn.Linear(config.hidden_size if config.scoring == "multiply" else heads, 1, bias=False)
        self.post_init()

    def embed(self, batch: ListBatch) -> Context:
        items = self.item_embedding(batch)
        if self.widening is not None:
            items = torch.cat([items, self.widening(items)], dim=-1)
        return {"items": items, "mask": batch.mask, **self.draw_dropout(batch.mask)}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        items, mask = context["items"], context["mask"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, self.positions.weight)
        outputs, state = self.run_gru(self.dropout(items, context), mask, position_ids)
        scores = self.score_against_state(outputs, state)
        if self.config.task_loss_name != "binary_log_loss":
            lowest = scores.masked_fill(~mask, torch.finfo(scores.dtype).max).amin(-1, keepdim=True)
            scores = scores - torch.where(mask.any(-1, keepdim=True), lowest, 0.0)
        return RerankerOutput(logits=mask_logits(scores, mask))

    def run_gru(self, items: Tensor, mask: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the GRU from the last position to the first, padding last.

        Args:
            items: [B, L, width], by slot.
            mask: bool [B, L].
            position_ids: int64 [B, L], or a soft order, float [B, L, L]; padding slots have the positions after the
                items.

        Returns:
            The output for each slot's item [B, L, hidden_size], and the state when the top item was read
            [B, hidden_size].
        """
        steps = torch.arange(mask.shape[1], device=mask.device)
        count = mask.sum(-1, keepdim=True)
        # Step 0 reads position n - 1, step n - 1 position 0. The map is its own inverse.
        turned = torch.where(steps < count, count - 1 - steps, steps)
        if position_ids.is_floating_point():
            # Each position reads the mean of the items, weighted by their shares of that position.
            shares = position_ids.transpose(1, 2).to(items.dtype)
            total = shares.sum(-1, keepdim=True)
            by_place = shares @ items / torch.where(total > 0, total, 1.0)
            outputs, _ = self.gru(_select_rows(by_place, turned))
            by_slot = position_ids.to(items.dtype) @ _select_rows(outputs, turned)
        else:
            slots = order_from_positions(position_ids).gather(-1, turned)
            outputs, _ = self.gru(_select_rows(items, slots))
            by_slot = _select_rows(outputs, order_from_positions(slots))
        last = _select_rows(outputs, (count - 1).clamp(min=0)).squeeze(1)
        return by_slot, last

    def score_against_state(self, outputs: Tensor, state: Tensor) -> Tensor:
        """Scores items' outputs [B, L, hidden_size] against the list's state [B, hidden_size]; returns [B, L]."""
        of_state = self.of_state(state).unflatten(-1, (-1, self.config.hidden_size)).unsqueeze(1)  # [B, 1, heads, D]
        if self.of_item is not None:
            both = torch.tanh(self.of_item(outputs).unflatten(-1, (-1, self.config.hidden_size)) + of_state)
            return self.scorer((both * self.of_both.weight).sum(-1)).squeeze(-1) / self.config.num_scoring_heads
        products = outputs.unsqueeze(-2) * torch.tanh(of_state)
        if self.config.scoring == "multiply":
            return self.scorer(products.squeeze(-2)).squeeze(-1)
        return self.scorer(products.sum(-1)).squeeze(-1) / self.config.num_scoring_heads


def _select_rows(values: Tensor, rows: Tensor) -> Tensor:
    """The rows [B, R] of each list of values [B, L, D]."""
    return values.gather(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
