"""``RerankerConfig``: the options of every re-ranker, filled in from the schema of the lists."""

from dataclasses import field, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from hf_rerank.errors import InputError, suggestion
from hf_rerank.losses import TASK_LOSSES
from hf_rerank.schema import NO_ORDER, Categorical, ListSchema

# Keys that transformers itself writes into a config, in addition to the fields of the class.
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
    """Options of every re-ranker. ``for_schema`` fills in the sizes; the names of columns are stored in the processor.

    A field has one meaning in all models: ``hidden_size`` is the width of the encoder, ``num_hidden_layers`` its
    number of layers, ``num_attention_heads`` divides ``hidden_size`` in each attention, ``intermediate_size`` is the
    width of the feed-forward layer of an encoder block, and ``hidden_dropout_prob`` the dropout of hidden states
    (attention weights have none: all passes of a training step share one dropout mask, which fused attention does not
    support).

    Args:
        item_vocab_sizes: Rows of the embedding table of each categorical item feature (0 padding, 1 unknown, then
            values).
        num_item_dense: Numeric features per item.
        item_vector_dim: Length of an item's vectors, all of them concatenated.
        user_vocab_sizes: Rows of the embedding table of each categorical user feature.
        num_user_dense: Numeric features per user.
        history_vocab_sizes: Rows of the embedding table of each categorical history feature.
        history_shared_tables: For each of these the index of the item feature whose table it uses, or -1 if it has its
            own table.
        num_history_dense: Numeric features per history item.
        max_list_length: Longest list; there are position embeddings for positions 0 to ``max_list_length - 1``.
        max_history_length: Longest history.
        schema_fingerprint: Fingerprint of the fitted schema that the sizes come from.
        embedding_dim: Width of each embedding table.
        unknown_rate: Fraction of ids that training replaces by the unknown value, so that its row is trained, in
            [0, 1). None: for each item and user feature, the share of its values that are unknown in the lists that
            the trainer evaluates on, at least 0.01, so that training sees as many as new lists contain.
        item_unknown_rates: These fractions for the categorical item features, in [0, 1]; filled in by the trainer. A
            run that resumes keeps those of its checkpoint.
        user_unknown_rates: The same for the categorical user features.
        relative_features: Whether each numeric feature is also given relative to the list: its rank, and its
            differences from the list's mean and largest value, over the real items. They depend on the items and not
            on the given order.
        initial_score: How the model reads the earlier ranker's score of an item (``initial_score`` of the schema, or
            the trees in the processor): ``none``, not at all; ``feature``, as one more number; ``start``, as a number
            and as the score from which training starts: the model's own part begins at 0 and is added to it.
        initial_score_scale, initial_score_offset: Bring the score to the scale of the model's logits, ``scale * score
            + offset``; ``hf_rerank.training.calibrate_initial_score`` fits them.
        initial_score_positions: Number that each position adds to the starting score, ``max_list_length`` in all,
            fitted in the same way. Empty: 0.
        position_input: How the model reads the given order: ``embedding``, a learnable vector per position; ``none``,
            not at all.
        task_loss: A name in ``hf_rerank.losses.TASK_LOSSES``; ``binary_log_loss`` is the default of every model.
            ``own``: the loss of the model's paper.
        propensity_floor: Where lists have propensities, the task loss divides clicks by these, but by no less than
            this number, in (0, 1]: one click counts at most ``1 / propensity_floor`` times. A lower floor has less
            bias (below the floor a click still counts too little) and more variance. 1: clicks are taken as they are,
            under every loss.
        position_tower: Whether training learns, beside the model, how often each display position is examined, so that
            the scores are left with the relevance (``hf_rerank.models.position_tower``). The position at which a click
            was logged is that of the ``given`` order, or that of the item in its row (``rows``; the lists must be
            whole, not cut by another order). ``none``: no tower. Scores and rankings never contain the tower; the loss
            does, on evaluation lists too. For ``binary_log_loss``, ``softmax_loss`` and ``attention_rank_loss``.
        initializer_range: Standard deviation of initial embedding tables, truncated at two standard deviations.
    """

    model_type: ClassVar[str] = "rerank_base"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["losses", "list_logits", "hidden_states", "attentions"]
    own_task_loss: ClassVar[str] = "binary_log_loss"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    # Options of all presets: switch off what the published models do not have.
    published: ClassVar[dict[str, Any]] = {"unknown_rate": 0.01}

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
    unknown_rate: float | int | None = None
    item_unknown_rates: list[float] = field(default_factory=list)
    user_unknown_rates: list[float] = field(default_factory=list)
    relative_features: bool = False
    initial_score: Literal["none", "feature", "start"] = "none"
    initial_score_scale: float | int = 1.0
    initial_score_offset: float | int = 0.0
    initial_score_positions: list[float] = field(default_factory=list)
    position_input: Literal["embedding", "none"] = "embedding"
    task_loss: str = "binary_log_loss"
    propensity_floor: float | int = 0.1
    position_tower: Literal["none", "given", "rows"] = "none"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        known = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for key in kwargs:
            # transformers accepts any key; a typo must fail before training, not be ignored.
            if key not in _TRANSFORMERS_KEYS:
                raise InputError(f"{type(self).__name__} has no option {key!r}{suggestion(key, known)}")
        if kwargs.get("output_attentions"):
            # As upstream's setter does: with any other implementation the config could not be saved.
            kwargs["attn_implementation"] = kwargs.get("attn_implementation") or "eager"
        if kwargs.get("attn_implementation") not in (None, "eager", "sdpa"):
            # transformers would take any other name in a config.json for a Hub repository with code to run.
            raise InputError(f"attn_implementation is {kwargs['attn_implementation']!r}: expected 'eager' or 'sdpa'")
        if isinstance(self.dtype, str) and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise InputError(f"dtype is {self.dtype!r}: expected a torch dtype, such as 'float32'")
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        """Checks ranges and combinations of options, which type checks do not cover."""
        if min((*self.item_vocab_sizes, *self.user_vocab_sizes, *self.history_vocab_sizes, 3)) < 3:
            raise InputError("a table has fewer than 3 rows: expected padding, unknown and at least one value")
        if min(self.num_item_dense, self.item_vector_dim, self.num_user_dense, self.num_history_dense) < 0:
            raise InputError("num_item_dense, item_vector_dim, num_user_dense, num_history_dense: expected at least 0")
        if min(self.max_list_length, self.max_history_length, self.embedding_dim) < 1:
            raise InputError("max_list_length, max_history_length and embedding_dim: expected at least 1")
        if self.task_loss not in (*TASK_LOSSES, "own"):
            known = (*TASK_LOSSES, "own")
            meant = suggestion(self.task_loss, known)
            raise InputError(f"task_loss is {self.task_loss!r}: expected one of {', '.join(known)}{meant}")
        for name in ("item", "user"):
            rates, tables = getattr(self, f"{name}_unknown_rates"), getattr(self, f"{name}_vocab_sizes")
            if rates and (len(rates) != len(tables) or min(rates) < 0 or max(rates) > 1):
                raise InputError(
                    f"{name}_unknown_rates is {rates}: expected {len(tables)} fractions in [0, 1], or none"
                )
        if self.initial_score_positions and len(self.initial_score_positions) != self.max_list_length:
            raise InputError(
                f"initial_score_positions has {len(self.initial_score_positions)} numbers: expected one for each of "
                f"{self.max_list_length} positions, or none"
            )
        if self.initial_score_positions and self.position_input == "none":
            raise InputError(
                "position_input='none' ignores the given order, and initial_score_positions reads it: leave one of "
                "them out"
            )
        if self.unknown_rate is not None and not 0 <= self.unknown_rate < 1:
            raise InputError(f"unknown_rate is {self.unknown_rate}: expected a fraction in [0, 1)")
        if not 0 < self.propensity_floor <= 1:
            raise InputError(f"propensity_floor is {self.propensity_floor}: expected a number above 0, at most 1")
        if not self.initializer_range > 0:
            raise InputError(f"initializer_range is {self.initializer_range}: expected a number above 0")
        if len(self.history_shared_tables) != len(self.history_vocab_sizes):
            raise InputError("history_shared_tables and history_vocab_sizes differ in length: one entry per feature")
        if any(not -1 <= table < len(self.item_vocab_sizes) for table in self.history_shared_tables):
            raise InputError(f"history_shared_tables is {self.history_shared_tables}: expected item features, or -1")

    @classmethod
    def position_inputs(cls) -> tuple[str, ...]:
        """The choices of ``position_input``; ``"none"`` is among those of a model that can do without an order."""
        return next(get_args(entry.type) for entry in fields(cls) if entry.name == "position_input")

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
        axes = schema.axis_sizes()
        sizes: dict[str, Any] = {"item_vector_dim": axes["Fv"]}
        for part, name, axis in (("items", "item", "F"), ("user", "user", "U"), ("history", "history", "H")):
            tables = schema.features(part, Categorical)
            sizes[f"{name}_vocab_sizes"] = [table.hash_size or table.size for table in tables]
            sizes[f"num_{name}_dense"] = axes[f"{axis}d"]
        item_tables = [table.name for table in schema.features("items", Categorical)]
        sizes["history_shared_tables"] = [
            -1 if table.shares is None else item_tables.index(table.shares)
            for table in schema.features("history", Categorical)
        ]
        for name in ("max_list_length", "max_history_length"):
            sizes[name] = getattr(schema, name)
        if schema.position == NO_ORDER and overrides.setdefault("position_input", "none") != "none":
            raise InputError(
                f"the schema has position={NO_ORDER!r} (no initial order), and position_input is "
                f"{overrides['position_input']!r}: leave it out, or name the column of positions in the schema"
            )
        if schema.position == NO_ORDER and overrides.get("position_tower") == "given":
            raise InputError(
                f"the schema has position={NO_ORDER!r} (no initial order), and position_tower is 'given': name the "
                "column of display positions as position in the schema, or choose position_tower='rows'"
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
        """As upstream; a value of the wrong type or out of range raises an ``InputError``."""
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
        return cls.for_schema(schema, **{**cls.published, **cls.presets[name], **overrides})
