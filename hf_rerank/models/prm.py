"""PRM: the personalised re-ranking model (Pei et al., RecSys 2019)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rerank.errors import InputError
from hf_rerank.models.base import Context, PreTrainedReranker, RerankerConfig, RerankerOutput, padded_low
from hf_rerank.models.layers import EncoderBlock, ItemEmbedding, check_sizes, position_vectors


@strict
class PRMConfig(RerankerConfig):
    """Config of ``PRMForReranking``.

    The defaults are those of the authors' code (2 blocks, 1 head, inner width 128); ``preset("paper")`` has the
    paper's (4 blocks, 3 heads; 64 is no multiple of 3, so heads are 22 wide).

    Args:
        d_model: Width of the encoder.
        num_blocks: Encoder blocks.
        num_heads: Attention heads.
        head_dim: Width of a head. None: ``d_model / num_heads``.
        inner_width: Of the hidden layer in each block.
        dropout: In [0, 1).
    """

    model_type: ClassVar[str] = "rerank_prm"
    own_task_loss: ClassVar[str] = "softmax_loss"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"num_blocks": 4, "num_heads": 3, "head_dim": 22, "inner_width": 64, "task_loss": "own"},
        "librerank-ad": {"num_blocks": 1, "dropout": 0.2},
        "librerank-prm": {"num_blocks": 1, "dropout": 0.2},
    }

    d_model: int = 64
    num_blocks: int = 2
    num_heads: int = 1
    head_dim: int | None = None
    inner_width: int = 128
    dropout: float | int = 0.1

    def validate_encoder(self) -> None:
        """Checks what types cannot say."""
        check_sizes(
            self.dropout,
            d_model=self.d_model,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            head_dim=1 if self.head_dim is None else self.head_dim,
            inner_width=self.inner_width,
        )
        if self.head_dim is None and self.d_model % self.num_heads:
            raise InputError(
                f"d_model={self.d_model} is no multiple of num_heads={self.num_heads}: change one, or set head_dim"
            )


class PRMForReranking(PreTrainedReranker):
    """A Transformer encoder over the items of the list.

    ``E = (X + PE[P]) W_E + b_E`` (equation 2 of the paper), encoder blocks, one score an item. ``X`` holds the item's
    features and the user's; the paper's personalised vectors join as a ``Vector`` column. The paper's loss,
    ``task_loss="own"``, is ``-sum_i y_i log softmax(score)_i`` over clicked items, labels not normalised; the paper
    prints the mean over a list, the authors' code takes this sum. User features as direct input follow that code.
    """

    config: PRMConfig

    def __init__(self, config: PRMConfig) -> None:
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        width = self.item_embedding.width
        self.positions = nn.Embedding(config.max_list_length, width) if config.position_input == "embedding" else None
        self.projection = nn.Linear(width, config.d_model)
        head_dim = config.head_dim or config.d_model // config.num_heads
        self.blocks = nn.ModuleList(
            EncoderBlock(config.d_model, config.num_heads, head_dim, config.inner_width, config.dropout)
            for _ in range(config.num_blocks)
        )
        self.scorer = nn.Linear(config.d_model, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def embed(
        self,
        item_categorical: Tensor,
        item_dense: Tensor | None,
        item_vectors: Tensor | None,
        user_categorical: Tensor | None,
        user_dense: Tensor | None,
        history_categorical: Tensor | None,
        history_dense: Tensor | None,
        history_mask: Tensor | None,
        mask: Tensor,
    ) -> Context:
        items = self.item_embedding(item_categorical, item_dense, item_vectors, user_categorical, user_dense)
        # W_E is linear, so X W_E + b_E is computed once and PE[P] W_E is added in each pass.
        return {"items": self.projection(items), "mask": mask}

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        items, mask = context["items"], context["mask"]
        if self.positions is not None:
            items = items + position_vectors(position_ids, F.linear(self.positions.weight, self.projection.weight))
        items = self.dropout(items)
        hidden_states, attentions = [items], []
        for block in self.blocks:
            items, weights = block(items, mask, with_weights=self.config.output_attentions)
            hidden_states.append(items)
            attentions.append(weights)
        return RerankerOutput(
            logits=padded_low(self.scorer(items).squeeze(-1), mask),
            hidden_states=tuple(hidden_states) if self.config.output_hidden_states else None,
            attentions=tuple(attentions) if self.config.output_attentions else None,
        )

    def task_loss(self, output: RerankerOutput, labels: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        if self.config.task_loss != "own":
            return super().task_loss(output, labels, mask, weights)
        from hf_rerank.losses import softmax_loss

        assert output.logits is not None
        return softmax_loss(output.logits, labels, mask=mask, weights=weights, normalize=False)
