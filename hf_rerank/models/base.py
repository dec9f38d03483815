"""What all re-rankers share: the config that a schema fills in, one ``forward`` for any number of passes, the output.

A model is three steps: ``embed`` turns features into a context that does not depend on the order shown, ``score``
gives ``R(X, P)`` for a position vector ``P``, ``task_loss`` compares scores with labels. ``forward`` runs them, and is
the only thing that training code calls: DDP, FSDP, autocast and torch.compile act there and nowhere inside.
"""

import copy
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_rerank.errors import InputError, suggestion
from hf_rerank.hub.files import HUB_OPTIONS, folder_with_weights
from hf_rerank.losses import TASK_LOSSES
from hf_rerank.principled.orders import order_from_positions, positions_from_scores
from hf_rerank.schema import NO_ORDER, Categorical, Dense, ListSchema, Vector
from hf_rerank.vocabularies import UNKNOWN

Context = dict[str, Tensor]
_HUB_OPTIONS = (*HUB_OPTIONS, "subfolder")
# Options of loading that are used most, for suggestions.
_LOADING_OPTIONS = (*_HUB_OPTIONS, "device", "device_map", "dtype", "attn_implementation")
_MODE = threading.Lock()
# Keys that transformers itself writes into a config, beside the fields of the class.
_TRANSFORMERS_KEYS = (
    "_attn_implementation_autoset",
    "_commit_hash",
    "_from_auto",
    "_name_or_path",
    "attn_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


@strict
class RerankerConfig(PreTrainedConfig):
    """Sizes that every re-ranker needs; names of columns live in the processor.

    Args:
        item_vocab_sizes: Rows of the table of each categorical item feature (0 padding, 1 unknown, then values).
        num_item_dense: Numbers an item.
        item_vector_dim: Length of an item's vectors, all of them joined.
        user_vocab_sizes: Rows of the table of each categorical user feature.
        num_user_dense: Numbers a list.
        history_vocab_sizes: Rows of the table of each categorical history feature.
        history_shared_tables: For each of them the number of the item feature whose table it uses, or -1 for its own.
        num_history_dense: Numbers a history item.
        max_list_length: Longest list; positions from 0 to this minus 1 can be embedded.
        max_history_length: Longest history.
        schema_fingerprint: Of the fitted schema that the sizes come from.
        embedding_dim: Width of each embedding table.
        unknown_rate: Share of ids that training turns into the unknown value, so that its row is trained, in [0, 1).
        position_input: How the model reads the order it is shown: ``embedding``, a learnable vector a position;
            ``none``, not at all.
        task_loss: ``binary_log_loss`` (the default of every model) and the listwise losses of ``hf_rerank.losses``;
            ``own``: the loss of the model's paper.
        initializer_range: Standard deviation of embedding tables, truncated at two.
    """

    model_type: ClassVar[str] = "rerank_base"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["losses", "hidden_states", "attentions"]
    own_task_loss: ClassVar[str] = "binary_log_loss"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    item_vocab_sizes: list[int] = field(default_factory=list)
    num_item_dense: int = 0
    item_vector_dim: int = 0
    user_vocab_sizes: list[int] = field(default_factory=list)
    num_user_dense: int = 0
    history_vocab_sizes: list[int] = field(default_factory=list)
    history_shared_tables: list[int] = field(default_factory=list)
    num_history_dense: int = 0
    max_list_length: int = 30
    max_history_length: int = 50
    schema_fingerprint: str | None = None
    embedding_dim: int = 16
    unknown_rate: float | int = 0.01
    position_input: Literal["embedding", "none"] = "embedding"
    task_loss: Literal[
        "binary_log_loss", "softmax_loss", "attention_rank_loss", "listnet_loss", "lambda_loss", "own"
    ] = "binary_log_loss"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        known = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for key in kwargs:
            # transformers accepts any key; a typo must not train for an hour.
            if key not in _TRANSFORMERS_KEYS:
                raise InputError(f"{type(self).__name__} has no option {key!r}{suggestion(key, known)}")
        if kwargs.get("output_attentions"):
            # As upstream's setter does: with any other the config could not be saved.
            kwargs["attn_implementation"] = kwargs.get("attn_implementation") or "eager"
        if kwargs.get("attn_implementation") not in (None, "eager", "sdpa"):
            # A config.json may name it, and transformers takes other names for Hub repositories with code to run.
            raise InputError(f"attn_implementation is {kwargs['attn_implementation']!r}: expected 'eager' or 'sdpa'")
        if isinstance(self.dtype, str) and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise InputError(f"dtype is {self.dtype!r}: expected a number format of torch, such as 'float32'")
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        """Checks what types cannot say."""
        if min((*self.item_vocab_sizes, *self.user_vocab_sizes, *self.history_vocab_sizes, 3)) < 3:
            raise InputError("a table has fewer than 3 rows: expected padding, unknown and at least one value")
        if min(self.num_item_dense, self.item_vector_dim, self.num_user_dense, self.num_history_dense) < 0:
            raise InputError("num_item_dense, item_vector_dim, num_user_dense, num_history_dense: expected at least 0")
        if min(self.max_list_length, self.max_history_length, self.embedding_dim) < 1:
            raise InputError("max_list_length, max_history_length and embedding_dim: expected at least 1")
        if not 0 <= self.unknown_rate < 1:
            raise InputError(f"unknown_rate is {self.unknown_rate}: expected a share in [0, 1)")
        if not self.initializer_range > 0:
            raise InputError(f"initializer_range is {self.initializer_range}: expected a number above 0")
        if len(self.history_shared_tables) != len(self.history_vocab_sizes):
            raise InputError("history_shared_tables and history_vocab_sizes differ in length: one entry a feature")
        if any(not -1 <= table < len(self.item_vocab_sizes) for table in self.history_shared_tables):
            raise InputError(f"history_shared_tables is {self.history_shared_tables}: expected item features, or -1")

    @property
    def task_loss_name(self) -> str:
        """The task loss with ``own`` resolved."""
        return self.own_task_loss if self.task_loss == "own" else self.task_loss

    @classmethod
    def for_schema(cls, schema: ListSchema, **overrides: Any) -> Any:
        """A config for the lists of a fitted schema.

        Args:
            schema: ``processor.schema``.
            overrides: Options of the config.

        Raises:
            InputError: The schema was not fitted, or an option is unknown or out of range.
        """
        if schema.fitted is None:
            raise InputError("the schema has not been fitted: use the schema of a ListProcessor, processor.schema")
        sizes: dict[str, Any] = {"item_vector_dim": sum(vector.dim for vector in schema.features("items", Vector))}
        for part, name in (("items", "item"), ("user", "user"), ("history", "history")):
            tables = schema.features(part, Categorical)
            sizes[f"{name}_vocab_sizes"] = [table.hash_size or table.size for table in tables]
            sizes[f"num_{name}_dense"] = sum(dense.width for dense in schema.features(part, Dense))
        item_tables = [table.name for table in schema.features("items", Categorical)]
        sizes["history_shared_tables"] = [
            -1 if table.shares is None else item_tables.index(table.shares)
            for table in schema.features("history", Categorical)
        ]
        for name in ("max_list_length", "max_history_length"):
            sizes[name] = getattr(schema, name)
        if schema.position == NO_ORDER and overrides.setdefault("position_input", "none") != "none":
            raise InputError(
                f"the schema says position={NO_ORDER!r}, that there is no initial order, and position_input is "
                f"{overrides['position_input']!r}: leave it out, or name the column of positions in the schema"
            )
        try:
            return cls(**{**sizes, "schema_fingerprint": schema.fingerprint, **overrides})
        except StrictDataclassError as error:
            if schema.position == NO_ORDER and "position_input" in str(error):
                raise InputError(
                    f"{cls.__name__.removesuffix('Config')} reads items in an order, and the schema says "
                    f"position={NO_ORDER!r}: choose another model, or name the column of positions in the schema"
                ) from None
            raise InputError(f"{cls.__name__}: {error.__cause__}") from None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As upstream; a value of the wrong type or out of range is an ``InputError``."""
        try:
            return super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise InputError(f"{cls.__name__}: {error.__cause__}") from None

    @classmethod
    def preset(cls, name: str, schema: ListSchema, **overrides: Any) -> Any:
        """A config with published sizes: ``paper``, ``librerank-ad`` or ``librerank-prm``."""
        if name not in cls.presets:
            raise InputError(
                f"{cls.__name__} has no preset {name!r}: expected one of {', '.join(cls.presets)}"
                f"{suggestion(name, cls.presets)}"
            )
        return cls.for_schema(schema, **{**cls.presets[name], **overrides})


@dataclass
class RerankerOutput(ModelOutput):
    """What a re-ranker returns.

    Attributes:
        loss: Scalar, with labels.
        losses: Its terms by name, scalars, with an objective.
        logits: float [B, L], one score a slot whatever the order shown; the lowest finite number at padding.
        list_logits: float [B], a score of the whole list, from models that give one.
        hidden_states: The input of the encoder and the output of each block [B, L, D], on request.
        attentions: Attention weights of each block [B, heads, L, L], on request. A model that looks at more than the
            list's items, such as PEAR, says in its docstring what the axes hold.
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
    """Base of the re-rankers: subclasses write ``embed`` and ``score``.

    Shapes: B lists, L items, H history items; see ``ListProcessor`` for the tensors.
    """

    config: RerankerConfig
    base_model_prefix = ""
    main_input_name = "item_categorical"
    # The loss is a mean over the batch's lists; the Trainer must not scale it by a number of items.
    accepts_loss_kwargs = False
    # Parameters that read features though their shape does not say so; hf_rerank.fine_tuning finds the others by it.
    reads_features: ClassVar[tuple[str, ...]] = ()
    _supports_sdpa = True
    # Threads that rank with the model now, and its mode before the first of them.
    _ranking = 0
    _was_training = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Loads a model, as ``PreTrainedModel.from_pretrained``, and refuses one whose weights are not all there.

        Weights are read from safetensors files of the folder or repository itself, and from nowhere else: no pickle,
        no adapter, no file outside. Where ``Reranker`` or the trainer saved the model, with a ``manifest.json``, the
        digests of its files are checked. What others saved, or ``save_pretrained`` of the model alone, has none: a
        weight that was changed without changing its shape is then not noticed.

        transformers fills missing weights with random numbers and only warns. With ``output_loading_info=True`` or
        ``ignore_mismatched_sizes=True`` the caller has asked for just that and looks after them.

        Raises:
            InputError: Weights are missing, unknown, of the wrong shape, damaged, or cannot be read; the config is
                wrong; or there is no such option.
        """
        source, name = pretrained_model_name_or_path, str(pretrained_model_name_or_path)
        dtype = options.get("dtype")
        if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise InputError(f"dtype is {dtype!r}: expected a number format of torch, such as 'float32'")
        if options.get("use_safetensors") is False or options.get("gguf_file"):
            raise InputError("weights are read from safetensors files only: leave use_safetensors and gguf_file out")
        if source is not None:
            hub_options = {option: options.pop(option) for option in _HUB_OPTIONS if option in options}
            subfolder = hub_options.pop("subfolder", None) or ""
            if Path(source).is_dir():
                source = Path(source) / subfolder
            elif subfolder:
                hub_options["subfolder"] = subfolder
            source = folder_with_weights(source, variant=options.get("variant"), **hub_options)
            options = {**options, "use_safetensors": True, "local_files_only": True}
        if options.get("output_loading_info") or options.get("ignore_mismatched_sizes"):
            loaded: Any = super().from_pretrained(source, *args, **options)
            _finish(loaded[0] if options.get("output_loading_info") else loaded, name)
            return loaded
        strict: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            with _without_load_report():
                loaded = super().from_pretrained(source, *args, **options, **strict)
        except InputError as error:
            raise InputError(f"config.json of {name}: {error}") from None
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None:
                raise
            raise InputError(
                f"there is no option {unknown[1]!r} of loading{suggestion(unknown[1], _LOADING_OPTIONS)}"
            ) from None
        except (OSError, SafetensorError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"{name} holds no weights that can be read: {reason}") from error
        model, loading = loaded
        for what, key in (("of the wrong shape", "mismatched"), ("missing", "missing"), ("unknown", "unexpected")):
            names = sorted(name if isinstance(name, str) else name[0] for name in loading[f"{key}_keys"])
            if names:
                raise InputError(
                    f"weights in {name} are {what}: {', '.join(names[:5])}"
                    f"{', ...' if len(names) > 5 else ''}; save or download the model again"
                )
        _finish(model, name)
        return model

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **options: Any) -> None:
        """As upstream; ``push_to_hub=True`` then calls ``push_to_hub``, with ``repo_id`` and its other options."""
        names = ("repo_id", "commit_message", "private", "revision", "create_pr") if push_to_hub else ()
        chosen = {name: options.pop(name) for name in names if name in options}
        super().save_pretrained(save_directory, *args, **options)
        if push_to_hub:
            repo_id = chosen.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, token=options.get("token"), **chosen)

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload model", **options: Any) -> Any:  # type: ignore[override]
        """Uploads the model alone (``Reranker.push_to_hub``: also its processor); other files of the repository stay.

        Args:
            repo_id: ``"someone/name"``, or a name of your own.
            commit_message: Of the commit.
            options: ``private``, ``token``, ``revision``, ``create_pr``, as of ``hf_rerank.hub.push_model``.
        """
        from hf_rerank.hub.push import push_saved, refuse_broken_weights

        refuse_broken_weights(self, "the model")
        return push_saved(self.save_pretrained, repo_id, part=True, commit_message=commit_message, **options)

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
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        objective: Callable[..., dict[str, Tensor]] | None = None,
    ) -> RerankerOutput:
        """Scores lists; with labels also their loss.

        Args:
            item_categorical: int64 [B, L, Fc].
            item_dense: float [B, L, Fd].
            item_vectors: float [B, L, Fv].
            user_categorical: int64 [B, Uc].
            user_dense: float [B, Ud].
            history_categorical: int64 [B, H, Hc].
            history_dense: float [B, H, Hd].
            history_mask: bool [B, H].
            mask: bool [B, L], True at real items. None: all are real.
            position_ids: int64 [B, L], the place at which each slot is shown. None: the order of the slots.
            labels: float [B, L], at least 0; what stands at padding is not looked at.
            weights: float [B, L], of the labels.
            objective: ``(score, position_ids, labels, mask, task_loss) -> losses``, a dictionary with ``loss``.
                ``score(orders)`` takes V orders of the B lists, [V * B, L] or soft [V * B, L, L], over one embedding;
                ``score(orders, lists)`` orders of the lists in rows ``lists`` [N]. ``task_loss(output)`` takes an
                output of the B lists, ``task_loss(output, lists)`` one of these rows. The output's scores are those of
                the first B orders that it scores. Without an objective the loss is the task loss of the given order.
        """
        if mask is None:
            mask = torch.ones(item_categorical.shape[:2], dtype=torch.bool, device=item_categorical.device)
        if position_ids is None:
            position_ids = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        longest = self.config.max_list_length
        # An exported graph takes any length, so this is no part of it.
        if not torch.compiler.is_compiling() and self.config.position_input != "none" and mask.shape[1] > longest:
            raise InputError(f"lists of {mask.shape[1]} slots: the model has positions for max_list_length={longest}")
        # Features come as float32, whatever the weights are.
        item_dense, item_vectors, user_dense, history_dense = (
            None if part is None else part.to(self.dtype)
            for part in (item_dense, item_vectors, user_dense, history_dense)
        )
        context = self.embed(
            item_categorical,
            item_dense,
            item_vectors,
            user_categorical,
            user_dense,
            history_categorical,
            history_dense,
            history_mask,
            mask,
        )
        if objective is None or labels is None:
            output = self.score(context, position_ids)
            if labels is not None:
                output.loss = self.task_loss(output, labels, mask, weights)
            return output

        first: list[RerankerOutput] = []

        def score(orders: Tensor, lists: Tensor | None = None) -> RerankerOutput:
            output = self.score(_rows(context, lists, orders.shape[0] // position_ids.shape[0]), orders)
            if not first:
                first.append(output)
            return output

        def task_loss(output: RerankerOutput, lists: Tensor | None = None) -> Tensor:
            if lists is None:
                return self.task_loss(output, labels, mask, weights)
            return self.task_loss(output, labels[lists], mask[lists], None if weights is None else weights[lists])

        losses = objective(score, position_ids, labels, mask, task_loss)
        given = first[0].split([mask.shape[0], first[0].logits.shape[0] - mask.shape[0]])[0]  # type: ignore[union-attr]
        return RerankerOutput(
            loss=losses["loss"],
            losses={name: value for name, value in losses.items() if name != "loss"},
            logits=given.logits,
            list_logits=given.list_logits,
        )

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
        """All that does not depend on the order shown: tensors by name, each with B first, ``mask`` among them."""
        raise NotImplementedError

    def score(self, context: Context, position_ids: Tensor) -> RerankerOutput:
        """``R(X, P)``: one score a slot.

        Args:
            context: Of ``embed``.
            position_ids: The order in which the items are shown: int64 [B, L], the place of each slot; or a soft
                order, float [B, L, L], for each slot a distribution over places (``hf_rerank.principled.soft_order``).
        """
        raise NotImplementedError

    def task_loss(self, output: RerankerOutput, labels: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """The scalar ``config.task_loss`` of an output."""
        assert output.logits is not None
        return TASK_LOSSES[self.config.task_loss_name](output.logits, labels, mask=mask, weights=weights)

    def resize_tables(self, schema: ListSchema) -> None:
        """Lengthens the embedding tables for a processor that has learned new values with ``processor.extend``.

        Rows that are there stay equal to the bit. A new row begins as a copy of the unknown value's, by which the new
        value was scored so far: until the model is trained on, no score changes. An optimizer made before this
        holds the old tables: make a new one.

        Args:
            schema: ``processor.schema``.

        Raises:
            InputError: The schema did not grow from the one that the model was made for, or the model has tables that
                it does not know how to lengthen.
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
        grown = type(self.config).for_schema(schema)
        in_use = self._with_rows_in_use(schema)
        holders = [module for module in self.modules() if isinstance(module, FeatureTables)]
        if not holders:
            raise InputError(f"{type(self).__name__} holds no FeatureTables: it cannot be given longer tables")
        for holder in holders:
            holder.lengthen(in_use)
            holder.lengthen(grown)
        for name in ("item_vocab_sizes", "user_vocab_sizes", "history_vocab_sizes", "schema_fingerprint"):
            setattr(self.config, name, getattr(grown, name))

    def _with_rows_in_use(self, schema: ListSchema) -> RerankerConfig:
        """The config with tables as long as their values need: rows that no value had are new rows too."""
        config = copy.deepcopy(self.config)
        rows = dict(zip(schema.extends, schema.rows_before, strict=False)).get(config.schema_fingerprint or "")
        if rows:
            left = iter(rows)
            for part, name in (("items", "item"), ("user", "user"), ("history", "history")):
                sizes = [next(left) if table.shares is None else 0 for table in schema.features(part, Categorical)]
                setattr(config, f"{name}_vocab_sizes", sizes)
        return config

    @torch.no_grad()
    def rank(self, **features: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks lists, in evaluation mode.

        Args:
            features: As of ``forward``.

        Returns:
            The slots of each list from best to worst, padding last, int64 [B, L]; and the scores by slot, [B, L].
        """
        with self._evaluating():
            logits = self(**features).logits
        mask = features.get("mask")
        return order_from_positions(positions_from_scores(logits.float(), mask)), logits

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode, until the last of the threads that rank at once is done."""
        with _MODE:
            if not self._ranking:
                self._was_training = self.training
                if self.training:  # walking all modules takes as long as scoring a short list
                    self.eval()
            self._ranking += 1
        try:
            yield
        finally:
            with _MODE:
                self._ranking -= 1
                if not self._ranking and self._was_training:
                    self.train()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            std = self.config.initializer_range
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])


class FeatureTables(nn.Module):
    """A module with embedding tables of categorical features, which may grow; see ``resize_tables``."""

    def lengthen(self, config: RerankerConfig) -> None:
        """Gives each table the rows that ``config`` says."""
        raise NotImplementedError


def lengthened(table: Any, rows: int) -> nn.Embedding:
    """A table [N, D] with this many rows, those beyond N copies of the row of the unknown value."""
    old = table.weight
    if rows == old.shape[0]:
        return table
    longer = nn.Embedding(rows, old.shape[1], padding_idx=table.padding_idx, device="meta")
    weight = torch.cat([old.detach()[:rows], old.detach()[UNKNOWN].expand(max(0, rows - old.shape[0]), -1)])
    longer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    return longer


def padded_low(logits: Tensor, mask: Tensor) -> Tensor:
    """Scores with the lowest finite number at padding, so that no sort puts padding before an item."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


@contextmanager
def _without_load_report() -> Iterator[None]:
    """transformers draws a table of weights that do not fit; here one line says it, and loading ends."""
    logger = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _finish(model: Any, name: str) -> None:
    """Gives the model the name it was asked for, and moves weights to memory as torch itself allocates it.

    Loaded weights lie in the mapped file, at any address, and on some processors a matrix product then rounds
    otherwise: the scores would differ in their last bits from those before saving.
    """
    model.config.name_or_path = model.name_or_path = name
    for weight in (*model.parameters(), *model.buffers()):
        if weight.data_ptr() % 64:
            weight.data = weight.data.clone()


def _rows(context: Context, lists: Tensor | None, versions: int) -> Context:
    """The context of the lists in these rows [N]; without rows, of all lists, ``versions`` times one after another."""
    if lists is not None:
        return {name: value.index_select(0, lists) for name, value in context.items()}
    if versions == 1:
        return context
    return {name: value.repeat(versions, *[1] * (value.dim() - 1)) for name, value in context.items()}
