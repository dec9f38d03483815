"""PRM: the personalised re-ranking model (Pei et al., RecSys 2019)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rerank.errors import InputError
from hf_rerank.losses import softmax_loss
from hf_rerank.models.base import PreTrainedReranker, RerankerOutput, mask_logits
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import ItemEmbedding
from hf_rerank.models.layers import Context, EncoderBlock, SharedDropout, check_sizes, position_vectors
from hf_rerank.schema import ListBatch


@strict
class PRMConfig(RerankerConfig):
    """Config of ``PRMForReranking``.

    The defaults are those of the authors' code (2 blocks, 1 head, inner width 128); ``preset("paper")`` has the
    paper's (4 blocks, 3 heads; 64 is not a multiple of 3, so heads are 22 wide).

    Args:
        hidden_size: Width of the encoder.
        num_hidden_layers: Number of encoder blocks.
        num_attention_heads: Number of attention heads.
        head_dim: Width of a head. None: ``hidden_size / num_attention_heads``.
        intermediate_size: Width of the hidden layer in each block.
        hidden_dropout_prob: Dropout of hidden states, in [0, 1).
    """

    model_type: ClassVar[str] = "rerank_prm"
    own_task_loss: ClassVar[str] = "softmax_loss"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "head_dim": 22,
            "intermediate_size": 64,
            "task_loss": "own",
        },
        "librerank-ad": {"num_hidden_layers": 1, "hidden_dropout_prob": 0.2},
        "librerank-prm": {"num_hidden_layers": 1, "hidden_dropout_prob": 0.2},
    }

    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    head_dim: int | None = None
    intermediate_size: int = 128
    hidden_dropout_prob: float | int = 0.1

    def validate_encoder(self) -> None:
        """Checks ranges and combinations of options, which type checks do not cover."""
        check_sizes(
            self.hidden_dropout_prob,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            head_dim=1 if self.head_dim is None else self.head_dim,
            intermediate_size=self.intermediate_size,
        )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads="
                f"{self.num_attention_heads}: change one, or set head_dim"
            )


class PRMForReranking(PreTrainedReranker):
    """A Transformer encoder over the items of the list.

    ``E = (X + PE[P]) W_E + b_E`` (equation 2 of the paper), encoder blocks, one score per item. ``X`` holds the item's
    features and the user's; the paper's personalised vectors are added as a ``Vector`` column. The paper's loss,
    ``task_loss="own"``, is ``-sum_i y_i log softmax(score)_i`` over clicked items, labels not normalised; the paper
    prints the mean over a list, the authors' code uses this sum. User features as direct input follow that code.

    When to choose it: try it first; it is a plain Transformer encoder, whose cost grows with the square of the list's
    length. SetRank is a similar encoder that offers inducing points for longer lists; PEAR adds attention to the
    user's click history, RAISE projections that depend on the user.
    """

    config: PRMConfig
    supports_gradient_checkpointing = True

    def __init__(self, config: PRMConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        width = self.item_embedding.width
        self.positions = nn.Embedding(config.max_list_length, width) if config.position_input == "embedding" else None
        self.projection = nn.Linear(width, config.hidden_size)
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self.blocks = nn.ModuleList(
            EncoderBlock(
                config.hidden_size,
                config.num_attention_heads,
                head_dim,
                config.intermediate_size,
                config.hidden_dropout_prob,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.scorer = nn.Linear(config.hidden_size, 1)
        self.dropout = SharedDropout(config.hidden_dropout_prob, config.hidden_size)
        self.post_init()

    def embed(self, batch: ListBatch) -> Context:
        items = self.item_embedding(batch)
        # W_E is linear, so X W_E + b_E is computed once and PE[P] W_E is added in each pass.
        return {"items": self.projection(items), "mask": batch.mask, **self.draw_dropout(batch.mask)}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        items, mask = context["items"], context["mask"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, F.linear(self.positions.weight, self.projection.weight))
        items = self.dropout(items, context)
        hidden_states, attentions = [items], []
        for block in self.blocks:
            items, weights = block(items, mask, context, with_weights=self.config.output_attentions)
            hidden_states.append(items)
            attentions.append(weights)
        return RerankerOutput(
            logits=mask_logits(self.scorer(items).squeeze(-1), mask),
            hidden_states=tuple(hidden_states) if self.config.output_hidden_states else None,
            attentions=tuple(attentions) if self.config.output_attentions else None,
        )

    def task_loss(
        self,
        output: RerankerOutput,
        labels: Tensor,
        mask: Tensor,
        weights: Tensor | None = None,
        propensities: Tensor | None = None,
    ) -> Tensor:
        if self.config.task_loss != "own":
            return super().task_loss(output, labels, mask, weights, propensities)
        assert output.logits is not None
        return softmax_loss(
            output.logits, labels, mask=mask, weights=weights, propensities=propensities, normalize=False
        )
