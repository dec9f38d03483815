"""What all re-rankers share: one ``forward`` for any number of passes, the output, loading and saving.

A model is three steps: ``embed`` turns features into a context that does not depend on the given order, ``score``
gives ``R(X, P)`` for a position vector ``P``, ``task_loss`` compares scores with labels. ``forward`` runs them, and is
the only method that training code calls: DDP, FSDP, autocast and torch.compile wrap it and nothing inside.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_rerank.errors import InputError
from hf_rerank.losses import TASK_LOSSES, check_position_tower_loss, check_propensity_loss
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.embeddings import FeatureTables, calibrate_scores, resize_to_schema
from hf_rerank.models.layers import Context, SharedDropout, count_positions, draw_dropout, position_vectors
from hf_rerank.models.loading import load_model
from hf_rerank.models.position_tower import PositionTower
from hf_rerank.principled.orders import order_from_positions, positions_from_scores
from hf_rerank.schema import TENSORS, ListBatch, ListSchema
from hf_rerank.storage import share_with_readers
from hf_rerank.storage.hub_upload import push_saved

# Features that are float32 in every batch, and become the dtype of the weights.
_NUMBERS = [name for name, spec in TENSORS.items() if spec.role == "feature" and spec.dtype == "float32"]


@dataclass
class RerankerOutput(ModelOutput):
    """Output of a re-ranker.

    Attributes:
        loss: Scalar loss, if labels were given.
        losses: Scalar terms of the loss by name, if an objective was given.
        logits: float [B, L], one score per slot, for any given order; the lowest finite number at padding.
        list_logits: float [B], a score of the whole list, from models that have one.
        hidden_states: The input of the encoder and the output of each block [B, L, D], on request.
        attentions: Attention weights of each block [B, heads, L, L], on request. A model that attends to more than the
            list's items, such as PEAR, describes the axes in its docstring.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    list_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def split(self, sizes: list[int]) -> "list[RerankerOutput]":
        """The outputs of the first ``sizes[0]`` lists, of the next ``sizes[1]``, and so on."""
        logits = self.logits.split(sizes)  # type: ignore[union-attr]
        list_logits = [None] * len(sizes) if self.list_logits is None else self.list_logits.split(sizes)
        return [RerankerOutput(logits=a, list_logits=b) for a, b in zip(logits, list_logits, strict=True)]


class PreTrainedReranker(PreTrainedModel):
    """Base class of the re-rankers: subclasses implement ``embed`` and ``score``.

    Shapes: B lists, L items, H history items; ``hf_rerank.schema.ListBatch`` describes every tensor.
    """

    config: RerankerConfig
    base_model_prefix = ""
    main_input_name = "item_categorical"
    # The loss is a mean over the batch's lists; the Trainer must not scale it by a number of items.
    accepts_loss_kwargs = False
    # Parameters that read features although their shape does not depend on them. Where a model is adapted to other
    # features, the rest are found by their shape.
    reads_features: ClassVar[tuple[str, ...]] = ()
    # The module that outputs the scores; its weights start at 0 if training starts from an earlier ranker's score.
    scorer: nn.Module
    _supports_sdpa = True

    def __init__(self, config: RerankerConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self.position_tower = None if config.position_tower == "none" else PositionTower(config.max_list_length)

    def post_init(self) -> None:
        """Call it last in every subclass's ``__init__``: as upstream, and names the dropout masks."""
        for name, module in self.named_modules():
            if isinstance(module, SharedDropout):
                module.key = f"dropout/{name}"
        super().post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Loads a model, as ``PreTrainedModel.from_pretrained``, and refuses one whose weights are incomplete.

        Weights are read from safetensors files of the folder or repository itself, and from nowhere else: no pickle,
        no adapter, no file outside. If ``Reranker`` or the trainer saved the model, with a ``manifest.json``, the
        digests of its files are checked. A model saved with ``model.save_pretrained`` alone has no manifest: a changed
        weight of unchanged shape then goes unnoticed.

        transformers fills missing weights with random numbers and only warns. With ``output_loading_info=True`` or
        ``ignore_mismatched_sizes=True`` this method does the same, and then accepts any config; otherwise a config
        with more parameters than the weight files have bytes is refused before memory is allocated.

        Args:
            pretrained_model_name_or_path: A folder, or the id of a Hub repository.
            args: As upstream.
            options: As upstream: ``revision``, ``token``, ``dtype``, ``device_map``, ...

        Raises:
            InputError: Weights are missing, unknown, of the wrong shape or dtype, damaged, or unreadable; the config
                is invalid, or describes a larger model than the weights; or an option is unknown.
        """
        return load_model(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **options)

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **options: Any) -> None:
        """As upstream; ``push_to_hub=True`` then calls ``push_to_hub``, with ``repo_id`` and its other options."""
        names = ("repo_id", "commit_message", "private", "revision", "create_pr") if push_to_hub else ()
        chosen = {name: options.pop(name) for name in names if name in options}
        super().save_pretrained(save_directory, *args, **options)
        for path in Path(save_directory).glob("*.safetensors"):
            share_with_readers(path)
        if push_to_hub:
            repo_id = chosen.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, token=options.get("token"), **chosen)

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload model", **options: Any) -> Any:  # type: ignore[override]
        """Uploads the model without its processor; the other files of the repository stay.

        ``Reranker.push_to_hub`` uploads both.

        Args:
            repo_id: ``"someone/name"``, or just a name, for a repository of your own.
            commit_message: Message of the commit.
            options: ``private``, ``token``, ``revision``, ``create_pr``, as in ``hf_rerank.hub.push_model``.
        """
        self.refuse_non_finite_weights("so the model is not pushed; train it again")
        return push_saved(self.save_pretrained, repo_id, commit_message=commit_message, **options)

    def refuse_non_finite_weights(self, consequence: str) -> None:
        """Raises an ``InputError`` that names the first parameter with NaN or infinite values, if there is one."""
        for name, parameter in self.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise InputError(f"the weights {name} are not finite, {consequence}")

    def forward(
        self,
        item_categorical: Tensor,
        item_dense: Tensor | None = None,
        item_vectors: Tensor | None = None,
        user_categorical: Tensor | None = None,
        user_dense: Tensor | None = None,
        history_categorical: Tensor | None = None,
        history_dense: Tensor | None = None,
        history_mask: Tensor | None = None,
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        initial_scores: Tensor | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        propensities: Tensor | None = None,
        objective: Callable[..., dict[str, Tensor]] | None = None,
    ) -> RerankerOutput:
        """Scores lists; given labels, also computes the loss.

        Args:
            item_categorical: int64 [B, L, Fc], rows of the embedding tables (0 padding, 1 unknown).
            item_dense: float [B, L, Fd].
            item_vectors: float [B, L, Fv].
            user_categorical: int64 [B, Uc].
            user_dense: float [B, Ud].
            history_categorical: int64 [B, H, Hc].
            history_dense: float [B, H, Hd].
            history_mask: bool [B, H], True at real items. None: all are real.
            mask: bool [B, L], True at real items. None: all are real.
            position_ids: int64 [B, L], the position of each slot's item in the given order, from 0; those of padding
                follow. None: the order of the slots; padding, wherever it is, does not count.
            initial_scores: float [B, L], the earlier ranker's scores; read by models whose config says so.
            labels: float [B, L], at least 0; values at padding are not read. None: no loss is computed.
            weights: float [B, L], at least 0, the weight of each item's term of the loss. None: 1.
            propensities: float [B, L], in (0, 1], the probability that each item was examined when its click was
                logged; the task loss corrects the clicks with it, see ``config.propensity_floor``.
            objective: ``(score, position_ids, labels, mask, task_loss) -> losses``, a dict with ``loss``.
                ``score(positions)`` takes V position vectors for each of the B lists, [V * B, L], or soft orders
                [V * B, L, L], over one embedding; ``score(positions, lists)`` those of the lists in rows ``lists``
                [N]; ``score(..., fresh_dropout=True)`` draws new dropout masks instead of using the step's.
                ``task_loss(output)`` takes an output for the B lists, ``task_loss(output, lists)`` one for these rows.
                The ``logits`` returned are those of the first B position vectors that are scored. Without an objective
                the loss is the task loss of the given order.

        Returns:
            ``logits`` [B, L] always; ``loss`` with labels; ``losses`` with an objective.

        Raises:
            InputError: A list has more slots than the model has positions, or features do not match the config.
        """
        if mask is None:
            mask = torch.ones(item_categorical.shape[:2], dtype=torch.bool, device=item_categorical.device)
        if position_ids is None:
            position_ids = count_positions(mask)
        longest = self.config.max_list_length
        # An exported graph takes any length, so it leaves out this check.
        reads_positions = self.config.position_input != "none" or (
            self.position_tower is not None and labels is not None
        )
        if not torch.compiler.is_compiling() and reads_positions and mask.shape[1] > longest:
            raise InputError(f"lists of {mask.shape[1]} slots: the model has positions for max_list_length={longest}")
        batch = ListBatch(
            item_categorical=item_categorical,
            item_dense=item_dense,
            item_vectors=item_vectors,
            user_categorical=user_categorical,
            user_dense=user_dense,
            history_categorical=history_categorical,
            history_dense=history_dense,
            history_mask=history_mask,
            mask=mask,
            position_ids=position_ids,
            initial_scores=initial_scores,
        )
        for name in _NUMBERS:
            if (numbers := getattr(batch, name)) is not None:
                setattr(batch, name, numbers.to(self.dtype))
        if propensities is not None:
            floor = self.config.propensity_floor
            propensities = None if floor == 1 else propensities.clamp(min=floor)
        context = self.embed(batch)
        if self.config.initial_score == "start":
            scale, offset = self.config.initial_score_scale, self.config.initial_score_offset
            context["start"] = calibrate_scores(batch, scale, offset)
        if objective is None or labels is None:
            output = self._score_from_start(context, position_ids)
            if labels is not None:
                clicks = self._predict_clicks(output, position_ids, mask)
                output.loss = self.task_loss(clicks, labels, mask, weights, propensities)
            return output

        first: list[RerankerOutput] = []

        def score(positions: Tensor, lists: Tensor | None = None, fresh_dropout: bool = False) -> RerankerOutput:
            chosen = _select_rows(context, lists, positions.shape[0] // position_ids.shape[0])
            if fresh_dropout:
                chosen = {**chosen, **self.draw_dropout(chosen["mask"])}
            output = self._score_from_start(chosen, positions)
            if not first:
                first.append(output)
            return output

        def task_loss(output: RerankerOutput, lists: Tensor | None = None) -> Tensor:
            def rows(tensor: Any) -> Any:
                return tensor if lists is None or tensor is None else tensor[lists]

            clicks = self._predict_clicks(output, rows(position_ids), rows(mask))
            return self.task_loss(clicks, rows(labels), rows(mask), rows(weights), rows(propensities))

        losses = objective(score, position_ids, labels, mask, task_loss)
        given = first[0].split([mask.shape[0], first[0].logits.shape[0] - mask.shape[0]])[0]  # type: ignore[union-attr]
        return RerankerOutput(
            loss=losses["loss"],
            losses={name: value for name, value in losses.items() if name != "loss"},
            logits=given.logits,
            list_logits=given.list_logits,
        )

    def _score_from_start(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        """``score``, added to the earlier ranker's scores if training starts from them."""
        output = self.score(context, position_ids)
        if "start" in context:
            assert output.logits is not None
            start = context["start"]
            if self.config.initial_score_positions:
                table = torch.tensor(self.config.initial_score_positions, dtype=start.dtype, device=start.device)
                start = start + position_vectors(position_ids, table.unsqueeze(-1)).squeeze(-1)
            start = start.masked_fill(~context["mask"], 0.0)  # padding stays at the lowest finite number
            output.logits = output.logits + start.to(output.logits.dtype)
        return output

    def _predict_clicks(self, output: RerankerOutput, position_ids: Tensor, mask: Tensor) -> RerankerOutput:
        """The output with the logits of clicks at the display positions, if the model has a position tower."""
        if self.position_tower is None:
            return output
        assert output.logits is not None
        check_position_tower_loss(self.config.task_loss_name)
        if self.config.position_tower == "rows":
            position_ids = count_positions(mask)
        multiply = self.config.task_loss_name == "binary_log_loss"
        return replace(output, logits=self.position_tower(output.logits, position_ids, mask, multiply=multiply))

    def embed(self, batch: ListBatch) -> Context:
        """Computes everything that does not depend on the given order: tensors by name, B first, including ``mask``.

        In training mode the context includes the dropout masks of the step (``self.draw_dropout(batch.mask)``), which
        all passes share.

        Args:
            batch: The batch, with ``mask`` and ``position_ids``, without labels and weights.
        """
        raise NotImplementedError

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        """``R(X, P)``: one score per slot.

        Args:
            context: The tensors that ``embed`` returned.
            position_ids: The order in which the items are given: int64 [B, L], the position of each slot; or a soft
                order, float [B, L, L], for each slot a distribution over positions
                (``hf_rerank.principled.soft_order``).
        """
        raise NotImplementedError

    def task_loss(
        self,
        output: RerankerOutput,
        labels: Tensor,
        mask: Tensor,
        weights: Tensor | None = None,
        propensities: Tensor | None = None,
    ) -> Tensor:
        """Computes the scalar ``config.task_loss``; propensities were clamped to ``config.propensity_floor`` before.

        Raises:
            InputError: There are propensities, and the loss cannot be corrected with them.
        """
        assert output.logits is not None
        corrected: dict[str, Any] = {}
        if propensities is not None:
            self.check_propensity_loss()
            corrected["propensities"] = propensities
        loss = TASK_LOSSES[self.config.task_loss_name]
        return loss(output.logits, labels, mask=mask, weights=weights, **corrected)

    def check_propensity_loss(self) -> None:
        """Raises an InputError if the model's loss cannot be corrected with propensities, or is corrected already."""
        if self.position_tower is not None:
            raise InputError(
                f"the lists have propensities, and the config has position_tower={self.config.position_tower!r}: each "
                "of them corrects the position bias; leave position_tower out of the config, or set "
                "propensity_floor=1 there to use the propensities in evaluation only"
            )
        check_propensity_loss(self.config.task_loss_name)

    def draw_dropout(self, mask: Tensor) -> Context:
        """Draws masks for every ``SharedDropout`` that ``score`` applies, for the lists of ``mask`` [B, L]."""
        return draw_dropout(mask, self)

    def resize_embeddings(self, schema: ListSchema) -> None:
        """Adds table rows for the values that the processor has learned with ``processor.extend``.

        Existing rows stay bitwise equal. A new row starts as a copy of the unknown value's row, which scored the new
        value until now: no score changes until the model is trained further. An optimizer created earlier refers to
        the old tables: create a new one.

        Args:
            schema: ``processor.schema``.

        Raises:
            InputError: The schema is not an extension of the model's schema, or the model has tables that it does not
                know how to resize.
        """
        if not isinstance(schema, ListSchema):
            raise InputError(f"expected a schema, processor.schema, got {type(schema).__name__}")
        if schema.fingerprint == self.config.schema_fingerprint:
            return
        if self.config.schema_fingerprint not in schema.extends:
            raise InputError(
                f"the model was made for lists with fingerprint {self.config.schema_fingerprint}, and the schema with "
                f"{schema.fingerprint} did not grow from that one: give the schema of the model's own processor after "
                "processor.extend(lists)"
            )
        if not any(isinstance(module, FeatureTables) for module in self.modules()):
            raise InputError(f"{type(self).__name__} has no FeatureTables: its embedding tables cannot be resized")
        resize_to_schema(self, schema)

    @torch.no_grad()
    def rank(self, **features: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks lists.

        Args:
            features: The inputs of ``forward``, without labels, weights and objective.

        Returns:
            The slots of each list from best to worst, padding last, int64 [B, L]; and the scores by slot, [B, L].

        Raises:
            InputError: The model is in training mode, in which dropout would change the ranking.
        """
        if self.training:
            raise InputError(f"{type(self).__name__} is in training mode: call model.eval() before ranking")
        logits = self(**features).logits
        return order_from_positions(positions_from_scores(logits.float(), features.get("mask"))), logits

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, PositionTower):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            std = self.config.initializer_range
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        if self.config.initial_score == "start" and module is self.scorer:
            for parameter in module.parameters():
                init.zeros_(parameter)


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Scores with the lowest finite number at padding, so that no sort puts padding before an item."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def _select_rows(context: Context, lists: Tensor | None, versions: int) -> Context:
    """The context of the lists in these rows [N]; without rows, that of all lists, repeated ``versions`` times."""
    if lists is not None:
        return {name: value.index_select(0, lists) for name, value in context.items()}
    if versions == 1:
        return context
    return {name: value.repeat(versions, *[1] * (value.dim() - 1)) for name, value in context.items()}
