"""A guessed schema as JSON with comments: the values of each column, and the reason for each guess."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from hf_rerank.schema import Feature, ListSchema, kind_of

CHECK = "CHECK: "
FIELDS = (
    *("label", "position", "initial_score", "weight", "propensity", "id", "list_id", "group", "max_list_length"),
    "max_history_length",
)


@dataclass
class InferredSchema:
    """A draft of a schema.

    Attributes:
        schema: The guess.
        comments: Feature -> the values of its column, and the reason for the guess.
        field_comments: Other field of the schema -> the same.
        left_out: Column -> why it is not a feature.
        header: Lines at the top: the rows that were read, and what to do next.
    """

    schema: ListSchema
    comments: dict[str, str]
    field_comments: dict[str, str]
    left_out: dict[str, str]
    header: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        """The schema as JSON with lines of comment (``//``), which ``ListSchema.load`` reads."""
        lines = [*(_format_comment(line) for line in self.header), "{"]
        entries: list[str] = []
        for part in ("items", "user", "history"):
            rows = []
            for feature in getattr(self.schema, part):
                rows.append(f"    {_format_comment(self.comments[feature.name])}\n    {_format_feature(feature)}")
            entries.append(f'  "{part}": [' + ("\n" + ",\n".join(rows) + "\n  ]" if rows else "]"))
        for name in FIELDS:
            comment = f"  {_format_comment(self.field_comments[name])}\n" if name in self.field_comments else ""
            entries.append(f'{comment}  "{name}": {json.dumps(getattr(self.schema, name))}')
        lines += [",\n".join(entries), "}"]
        if self.left_out:
            lines.append("// Columns that are not features:")
            lines += [_format_comment(f"- {name}: {why}") for name, why in self.left_out.items()]
        return "\n".join(lines) + "\n"

    def list_uncertain(self) -> list[str]:
        """One line per uncertain guess: the column or field, and the reason."""
        said = [*self.field_comments.items(), *self.comments.items(), *self.left_out.items()]
        return [f"{name}: {' '.join(why.partition(CHECK)[2].split())}" for name, why in said if CHECK in why]


def _format_comment(text: str) -> str:
    """A comment on one line, even if the name of a column contains line breaks."""
    return "// " + " ".join(text.split())


def _format_feature(feature: Feature) -> str:
    """The fields of a feature that a user may want to change, on one line."""
    left_out = {"shares"} if getattr(feature, "shares", None) is None else {"size", "hash_size", "min_count"}
    fields = {name: value for name, value in dataclasses.asdict(feature).items() if name not in left_out}
    return json.dumps({"kind": kind_of(feature), **fields})
