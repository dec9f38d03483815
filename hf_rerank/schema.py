"""The schema of lists, and the table of tensors that lists become.

``ListSchema`` describes each column. One row is one list. A list-level column (a user feature) holds one value per
row; an item column holds a sequence, and all item columns of a row have the same length; a history column holds a
sequence of any length.

``ListBatch`` is the table of tensors: each of its fields is one tensor of a batch, with its axes, dtype, padding value
and role. Padding, collating, gathering across processes, ONNX inputs and validation all read it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import numbers
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_rerank.errors import InputError, suggestion
from hf_rerank.storage.json_files import parse_json_object, write_json

if TYPE_CHECKING:
    from torch import Tensor

MIN_COUNT = 2
# The value of ``position`` for lists without an initial order.
NO_ORDER = "none"
# Row numbers are stored in 32 bits.
MAX_ROWS = 2**31 - 1


@dataclass(frozen=True)
class Categorical:
    """A categorical feature (an id, a category): integers or text, looked up in an embedding table.

    Row 0 of the table is padding, row 1 the unknown value; the values follow.

    Args:
        name: Column name.
        size: Number of rows of the table, at least 3. None: as many as the training lists need. If there are more
            values than rows, the most frequent values get a row and the others become unknown; the processor reports
            how many.
        hash_size: Number of rows of a table without a vocabulary: values are hashed into rows 2 to ``hash_size - 1``.
        shares: For a history feature: the item feature whose table and vocabulary it uses.
        min_count: Values that occur less often in training become the unknown value, so that its row is trained.
            Default 2.
    """

    name: str
    size: int | None = None
    hash_size: int | None = None
    shares: str | None = None
    min_count: int = MIN_COUNT

    def __post_init__(self) -> None:
        if self.hash_size is not None and self.shares is not None:
            raise InputError(
                f"{self.name!r} has both hash_size and shares: a shared table has the size of the other feature"
            )
        if self.hash_size is not None and self.size is not None:
            raise InputError(f"{self.name!r} has both size and hash_size: hash_size is the size of a hashed table")
        for what, rows in (("size", self.size), ("hash_size", self.hash_size)):
            if rows is not None:
                _require_integer(f"{self.name!r} has {what}", rows)
            if rows is not None and rows < 3:
                raise InputError(f"{self.name!r} has {what}={rows}: expected at least 3 (padding, unknown, one value)")
            if rows is not None and rows > MAX_ROWS:
                raise InputError(f"{self.name!r} has {what}={rows}: expected at most {MAX_ROWS:,} table rows")
        _require_integer(f"{self.name!r} has min_count", self.min_count)
        if self.min_count < 1:
            raise InputError(f"{self.name!r} has min_count={self.min_count}: expected at least 1")


@dataclass(frozen=True)
class Dense:
    """A numeric feature.

    Args:
        name: Column name.
        scale: ``standard`` (default): subtract the mean of the training lists and divide by their standard deviation;
            ``log``: the same after sign(x) * log(1 + abs(x)), for prices and counts; ``quantile``: the standard
            normal quantile of the value's rank in the training lists, which suits any distribution and bounds
            outliers; ``none``: unchanged.
        missing: How a null is encoded. ``mean`` (default): as the training mean. ``indicator``: as the mean, with a
            second number that is 1 where the value was missing. ``error``: raise an error.
    """

    name: str
    scale: Literal["standard", "log", "quantile", "none"] = "standard"
    missing: Literal["mean", "indicator", "error"] = "mean"

    def __post_init__(self) -> None:
        _require_one_of(self.name, "scale", self.scale, ("standard", "log", "quantile", "none"))
        _require_one_of(self.name, "missing", self.missing, ("mean", "indicator", "error"))

    @property
    def width(self) -> int:
        """The number of dense inputs that the feature becomes: 2 with an indicator, else 1."""
        return 2 if self.missing == "indicator" else 1


@dataclass(frozen=True)
class Vector:
    """A vector of ``dim`` numbers per item (a text or image embedding), used unchanged.

    Args:
        name: Name of a column of sequences of vectors.
        dim: Length of each vector, at least 1.
    """

    name: str
    dim: int

    def __post_init__(self) -> None:
        _require_integer(f"{self.name!r} has dim", self.dim)
        if self.dim < 1:
            raise InputError(f"{self.name!r} has dim={self.dim}: expected at least 1")


# ------------------------------------------------------------------------------------------------ the table of tensors

Role = Literal["feature", "mask", "position", "label", "weight", "cut_label", "propensity", "ground_truth", "identity"]
# The roles of a model's ``forward`` inputs; the other roles are for metrics and messages.
MODEL_ROLES = ("feature", "mask", "position", "label", "weight", "propensity")
LABEL_PADDING = -100.0
AFTER_THE_ITEMS = "after the items"


@dataclass(frozen=True)
class TensorSpec:
    """One row of the table of tensors.

    Attributes:
        axes: ``B`` lists, ``L`` items, ``H`` history items, ``C`` items cut from the list, ``W`` bytes of an
            id; then the numbers of features: ``Fc``, ``Fd``, ``Fv`` of items (categorical, dense, vector numbers),
            ``Uc``, ``Ud`` of users, ``Hc``, ``Hd`` of history items.
        dtype: Name of the dtype in numpy and torch.
        fill: Value at padding. ``AFTER_THE_ITEMS``: positions that follow those of the items.
        role: Purpose of the tensor.
        required: Whether every batch has it.
        column: The field of ``ListSchema`` that names its item column, for tensors with the axes ``B L``.
        lowest: Smallest value allowed in the column. None: any finite number.
    """

    axes: tuple[str, ...]
    dtype: str
    fill: float | str
    role: Role
    required: bool = False
    column: str | None = None
    lowest: float | None = None


def _tensor(axes: str, dtype: str, fill: float | str, role: Role, **options: Any) -> Any:
    return field(default=None, metadata={"spec": TensorSpec(tuple(axes.split()), dtype, fill, role, **options)})


@dataclass(eq=False)
class ListBatch(Mapping[str, Any]):
    """The tensors of a batch, and at the same time the table that describes them (``TENSORS``).

    A tensor that the lists lack is None and is left out of the mapping: ``dict(batch)`` contains the others.
    Models read attributes, such as ``batch.item_dense``. To add a kind of tensor, add a field here and read it in the
    models that use it.
    """

    item_categorical: Tensor = _tensor("B L Fc", "int64", 0, "feature", required=True)
    item_dense: Tensor | None = _tensor("B L Fd", "float32", 0.0, "feature")
    item_vectors: Tensor | None = _tensor("B L Fv", "float32", 0.0, "feature")
    user_categorical: Tensor | None = _tensor("B Uc", "int64", 0, "feature")
    user_dense: Tensor | None = _tensor("B Ud", "float32", 0.0, "feature")
    history_categorical: Tensor | None = _tensor("B H Hc", "int64", 0, "feature")
    history_dense: Tensor | None = _tensor("B H Hd", "float32", 0.0, "feature")
    history_mask: Tensor | None = _tensor("B H", "bool", False, "mask")
    mask: Tensor = _tensor("B L", "bool", False, "mask", required=True)
    position_ids: Tensor = _tensor("B L", "int64", AFTER_THE_ITEMS, "position", required=True, column="position")
    initial_scores: Tensor | None = _tensor("B L", "float32", 0.0, "feature", column="initial_score")
    labels: Tensor | None = _tensor("B L", "float32", LABEL_PADDING, "label", column="label", lowest=0.0)
    weights: Tensor | None = _tensor("B L", "float32", 0.0, "weight", column="weight", lowest=0.0)
    cut_labels: Tensor | None = _tensor("B C", "float32", LABEL_PADDING, "cut_label", lowest=0.0)
    propensities: Tensor | None = _tensor("B L", "float32", 1.0, "propensity", column="propensity", lowest=0.0)
    attraction: Tensor | None = _tensor("B L", "float32", 0.0, "ground_truth", column="attraction", lowest=0.0)
    list_id: Tensor | None = _tensor("B W", "uint8", 0, "identity")

    def __getitem__(self, name: str) -> Any:
        value = getattr(self, name, None) if name in TENSORS else None
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in TENSORS if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


TENSORS: dict[str, TensorSpec] = {entry.name: entry.metadata["spec"] for entry in dataclasses.fields(ListBatch)}
# The keyword arguments of a model's ``forward``, in order.
MODEL_TENSORS = tuple(name for name, spec in TENSORS.items() if spec.role in MODEL_ROLES)
# The inputs that scores depend on: the same without labels and weights.
FEATURE_TENSORS = tuple(name for name, spec in TENSORS.items() if spec.role in ("feature", "mask", "position"))
# Field of the schema that names an item column -> the tensor of that column.
COLUMN_TENSORS = {spec.column: name for name, spec in TENSORS.items() if spec.column is not None}


# ---------------------------------------------------------------------------------------------------------- the schema

Feature = Categorical | Dense | Vector
FEATURE_KINDS: dict[str, type[Categorical] | type[Dense] | type[Vector]] = {
    "categorical": Categorical,
    "dense": Dense,
    "vector": Vector,
}


@dataclass(frozen=True)
class ListSchema:
    """Describes the columns of lists.

    Args:
        items: Features of the items: columns of sequences.
        user: Features of the list (the user, the request): columns of single values; no vectors.
        history: Features of the user's earlier behaviour, newest first; no vectors.
        label: Item column of labels (a click is 1), at least 0.
        position: Item column with the position of each item in the initial order, 0 at the top; or 1 at the top of
            every list. None: the items of a row are in the initial order. ``"none"``: there is no initial order;
            models then read no positions.
        initial_score: Item column with the score that the earlier ranker gave each item, any finite number, larger is
            better; a model reads it only if its config says so. None: unknown.
        weight: Item column of sample weights, at least 0, which multiply the terms of every task loss. None: all 1.
        propensity: Item column of propensities, in (0, 1]: the probability that the item was examined when its click
            was logged; ``hf-rerank propensities`` estimates it. Training uses it to correct the clicks
            (``hf_rerank.losses``, and ``propensity_floor`` of the config), and so does evaluation
            (``hf_rerank.metrics.propensity``); it is not a feature.
        cut_label: Column with the labels of the items that were cut from lists longer than ``max_list_length``, one
            sequence per list, empty where nothing was cut. Metrics count them; no model reads them. None: unknown.
        id: Item column that ranking returns as ``ids``; it need not be a feature. None: the first item feature.
        list_id: Column with the id of the list. None: lists are numbered.
        group: Column to split by (the user); not a feature.
        max_list_length: Maximum number of items per list. Default 30.
        max_history_length: Maximum number of history items that models read (the newest ones). Default 50.
        attraction: In simulated lists, the item column of the true probability of a click on an examined item; not a
            feature.
        examination: In simulated lists, the probability that each position is examined, from position 0.
        fitted: Digest of the values that a processor has learned from training lists; set by the processor.
        extends: Fingerprints of the fitted schemas that this one extends, oldest first; set by the processor.
        computes_initial_score: Whether lists without the column ``initial_score`` get the scores of the processor's
            trees; set by the processor.
        rows_before: For each schema in ``extends``, the number of rows in use in each of its unshared tables (``size``
            may be larger), in column order; set by the processor.
    """

    items: Sequence[Feature]
    user: Sequence[Categorical | Dense] = ()
    history: Sequence[Categorical | Dense] = ()
    label: str = "click"
    position: str | None = None
    initial_score: str | None = None
    weight: str | None = None
    propensity: str | None = None
    cut_label: str | None = None
    id: str | None = None
    list_id: str | None = None
    group: str | None = None
    max_list_length: int = 30
    max_history_length: int = 50
    attraction: str | None = None
    examination: Sequence[float] | None = None
    fitted: str | None = None
    computes_initial_score: bool = False
    extends: Sequence[str] = ()
    rows_before: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        for part in ("items", "user", "history"):
            if not isinstance(getattr(self, part), Sequence):
                raise InputError(f"{part} of the schema is {getattr(self, part)!r}: expected a list of features")
            object.__setattr__(self, part, tuple(getattr(self, part)))
        object.__setattr__(self, "extends", tuple(self.extends))
        object.__setattr__(self, "rows_before", tuple(tuple(rows) for rows in self.rows_before))
        if self.examination is not None:
            for share in self.examination:
                if isinstance(share, bool) or not isinstance(share, numbers.Real) or not 0 <= share <= 1:
                    raise InputError(f"examination of the schema holds {share!r}: expected probabilities from 0 to 1")
            object.__setattr__(self, "examination", tuple(float(share) for share in self.examination))
        if not self.items:
            raise InputError("the schema has no item features: a re-ranker needs at least one")
        for feature in (*self.items, *self.user, *self.history):
            if not isinstance(feature, Feature):
                raise InputError(f"{feature!r} is not a feature: expected Categorical(...), Dense(...) or Vector(...)")
        names = [feature.name for feature in (*self.items, *self.user, *self.history)]
        special = self.item_columns()
        if self.label is None:
            raise InputError("the schema names no label: name the column of clicks, even if new lists lack it")
        of_lists = [name for name in (self.list_id, self.group, self.cut_label) if name is not None]
        for name in [*names, *special.values(), *of_lists, *([] if self.id is None else [self.id])]:
            if not isinstance(name, str) or not name:
                raise InputError(f"the schema names the column {name!r}: expected a non-empty string")
        for part, name in special.items():
            others = (*special, "list_id", "group", "cut_label")
            uses = [use for use in others if use != part and getattr(self, use) == name]
            if uses:
                raise InputError(
                    f"the schema uses the column {name!r} as {part} and as {uses[0]}: each needs its own column"
                )
            if name in names:
                raise InputError(f"the column {name!r} is both a feature and the {part}: name another column")
        if self.cut_label is not None and self.cut_label in (*names, self.list_id, self.group):
            raise InputError(f"the column {self.cut_label!r} is cut_label and has another use: name another column")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"the schema names the column {name!r} twice")
        if self.id in (*of_lists, *(feature.name for feature in (*self.user, *self.history))):
            raise InputError(f"id of the schema is {self.id!r}, which is not an item column: expected an item column")
        for part in ("user", "history"):
            for feature in getattr(self, part):
                if isinstance(feature, Vector):
                    raise InputError(f"{feature.name!r} is a Vector in {part}: vectors are features of items only")
        tables = [feature.name for feature in self.items if isinstance(feature, Categorical)]
        for feature in (*self.items, *self.user, *self.history):
            if isinstance(feature, Categorical) and feature.shares is not None:
                if feature not in self.history:
                    raise InputError(f"{feature.name!r} shares a table: only history features can")
                if feature.shares not in tables:
                    raise InputError(
                        f"{feature.name!r} shares the table of {feature.shares!r}, which is not a categorical item "
                        f"feature ({', '.join(tables) or 'there is none'}){suggestion(feature.shares, tables)}"
                    )
        for what in ("max_list_length", "max_history_length"):
            _require_integer(f"the schema has {what}", getattr(self, what))
            if getattr(self, what) < 1:
                raise InputError(f"the schema has {what}={getattr(self, what)}: expected at least 1")
        if self.group in names:
            warnings.warn(
                f"{self.group!r} is the column to split by and also a feature: in the test split all of its values "
                "will be unknown",
                stacklevel=3,
            )

    @property
    def position_column(self) -> str | None:
        """The column of positions; None if the order of the row is the initial order, or if there is none."""
        return None if self.position == NO_ORDER else self.position

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the meaning of the tensors: features, tables and fitted values."""
        parts = {name: self.to_dict()[name] for name in ("items", "user", "history", "fitted")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def item_columns(self) -> dict[str, str]:
        """The item columns that have their own tensor: field of the schema -> column, without those that are None.

        The fields are those of ``COLUMN_TENSORS``: ``label``, ``position``, ``initial_score``, ``weight``,
        ``propensity``, ``attraction``.
        """
        columns = {part: getattr(self, part) for part in COLUMN_TENSORS} | {"position": self.position_column}
        return {part: name for part, name in columns.items() if name is not None}

    @property
    def id_column(self) -> str:
        """The item column that ranking returns as ``ids``."""
        return self.items[0].name if self.id is None else self.id

    def axis_sizes(self) -> dict[str, int]:
        """The sizes of the feature axes of ``TENSORS``: ``Fc``, ``Fd``, ``Fv``, ``Uc``, ``Ud``, ``Hc``, ``Hd``."""
        sizes = {"Fv": sum(feature.dim for feature in self.features("items", Vector))}
        for part, axis in (("items", "F"), ("user", "U"), ("history", "H")):
            sizes[f"{axis}c"] = len(self.features(part, Categorical))
            sizes[f"{axis}d"] = sum(feature.width for feature in self.features(part, Dense))
        return sizes

    def feature_tensors(self) -> list[str]:
        """The names of the tensors that the scores of these lists depend on, in the order of ``forward``."""
        sizes = {**self.axis_sizes(), "B": 1, "L": 1, "H": len(self.history)}
        return [
            name
            for name in FEATURE_TENSORS
            if TENSORS[name].required
            or (all(sizes[axis] for axis in TENSORS[name].axes) and self._has_column(TENSORS[name]))
        ]

    def _has_column(self, spec: TensorSpec) -> bool:
        return spec.column is None or getattr(self, spec.column) is not None

    def features(self, part: str, kind: type) -> list[Any]:
        """The features of one ``part`` (``items``, ``user``, ``history``) and one kind, in the schema's order."""
        return [feature for feature in getattr(self, part) if isinstance(feature, kind)]

    def replace(self, **changes: Any) -> ListSchema:
        """A copy with changed fields."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` reads them back."""
        plain: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("items", "user", "history"):
                value = [{"kind": kind_of(feature), **dataclasses.asdict(feature)} for feature in value]
            elif entry.name in ("examination", "extends") and value is not None:
                value = list(value)
            elif entry.name in ("computes_initial_score", "cut_label"):
                if not value:
                    continue
            elif entry.name == "rows_before":
                if not value:  # so that earlier versions can read schemas that were never extended
                    continue
                value = [list(rows) for rows in value]
            plain[entry.name] = value
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ListSchema:
        """The schema that ``to_dict`` described.

        Raises:
            InputError: An unknown key or kind of feature, or a feature that lacks a field.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}
        for key in plain:
            if key not in known:
                raise InputError(f"the schema has an unknown key {key!r}{suggestion(key, known)}")
        values = dict(plain)
        for part in ("items", "user", "history"):
            described = plain.get(part, ())
            if not isinstance(described, Sequence):
                raise InputError(f"{part} of the schema is {described!r}: expected a list of features")
            values[part] = [_read_feature(part, feature) for feature in described]
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"the schema has a value of the wrong type: {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes the schema as JSON; the file appears complete or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> ListSchema:
        """Reads the schema from JSON, in which lines that begin with ``//`` are comments.

        Raises:
            InputError: The file does not exist, or does not contain a valid schema.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no schema at {path}: expected a JSON file as ListSchema.save writes it")
        try:
            # No JSON string contains a line break, so a comment line is never inside one. Comments are
            # emptied, not removed, which keeps the line numbers in errors right.
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not valid JSON: {error}; save it as UTF-8") from None
        text = "\n".join("" if line.lstrip().startswith("//") else line for line in lines)
        return cls.from_dict(parse_json_object(text, str(path), "write it as ListSchema.save does"))


def _require_integer(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{what}={value!r}: expected a whole number")


def _require_one_of(name: str, what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise InputError(
            f"{name!r} has {what}={value!r}: expected one of {', '.join(known)}{suggestion(str(value), known)}"
        )


def kind_of(feature: Feature) -> str:
    """``categorical``, ``dense`` or ``vector``."""
    return next(kind for kind, cls in FEATURE_KINDS.items() if isinstance(feature, cls))


def _read_feature(part: str, described: Mapping[str, Any]) -> Any:
    if not isinstance(described, Mapping):
        raise InputError(f"a feature of {part} is {described!r}: expected an object with kind and name")
    fields = dict(described)
    kind = str(fields.pop("kind", None))
    if kind not in FEATURE_KINDS:
        raise InputError(
            f"a feature of {part} has kind {kind!r}: expected one of {', '.join(FEATURE_KINDS)}"
            f"{suggestion(kind, FEATURE_KINDS)}"
        )
    known = {entry.name for entry in dataclasses.fields(FEATURE_KINDS[kind])}
    for key in fields:
        if key not in known:
            raise InputError(
                f"the {kind} feature {fields.get('name')!r} has an unknown key {key!r}{suggestion(key, known)}"
            )
    try:
        return FEATURE_KINDS[kind](**fields)
    except TypeError as error:
        raise InputError(
            f"the {kind} feature {fields.get('name')!r} of {part} lacks a field, or one has the wrong type: {error}"
        ) from None
