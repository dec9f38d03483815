"""Kind ``rank files``: list files passed to ``hf-rerank rank``."""

from __future__ import annotations

import bz2
import contextlib
import copy
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from fuzzing.judging import ANY, SAME, is_one_line, judge, wrong_ranking
from fuzzing.onnx_folders import ROWS, expected_orders, write_folder
from fuzzing.values import SPECIAL_FILES, damaged_bytes, damaged_json, make_special
from hf_rerank import InputError, Reranker
from hf_rerank.cli import main

ITEMS = [
    {name: value[slot] if isinstance(value, list) else value for name, value in row.items()}
    for row in ROWS
    for slot in range(len(row["price"]))
]
FORMATS = ("csv", "tsv", "jsonl", "json", "parquet", "arrow", "feather")
# Inserted into the text of a file in place of a value.
FRAGMENTS = (
    *("[" * depth + "]" * depth for depth in (2, 5, 60, 300, 900, 5000, 100_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (1, 60, 300, 900, 100_000)),
    *("9" * digits for digits in (18, 19, 20, 40, 309, 4300, 4301, 20_000)),
    *(
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "null",
        "true",
        '"\\ud800"',
        '"a\\nb"',
        '"\\u0000"',
        '""',
        '"1"',
        "1.5",
        "-1",
    ),
    *("", ",", '"', "\n", "\r", "\0", "1e", "0x1", "[1,]", "[null]", '{"a":1,"a":2}', "\ufeff", "'", '"x' * 3),
)


def content_in(kind: str) -> bytes:
    """The lists as the content of a file of that format; CSV has one row per item."""
    sink = io.BytesIO()
    if kind in ("csv", "tsv"):
        options = arrow_csv.WriteOptions(delimiter="," if kind == "csv" else "\t")
        arrow_csv.write_csv(pa.Table.from_pylist(ITEMS), sink, options)
    elif kind == "json":
        sink.write(json.dumps(ROWS, ensure_ascii=False).encode())
    elif kind == "jsonl":
        sink.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode())
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
    else:
        table = pa.Table.from_pylist(ROWS)
        with (pa.ipc.new_stream if kind == "arrow" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


class RankFiles:
    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "ranked.jsonl"
        write_folder(folder / "model")
        self.reranker = Reranker.from_pretrained(folder / "model")
        self.contents = {kind: content_in(kind) for kind in FORMATS}

    def try_one(self, draw: random.Random) -> tuple[str, str]:
        kind = draw.choice(FORMATS)
        path = self.folder / f"lists.{kind}"
        ways = (self._bytes, self._fragment, self._value, self._packing, self._encoding, self._special)
        what, path, expected = draw.choice(ways)(path, kind, draw)
        outcome = judge(lambda: self._rank(path), lambda results: self._find_error(path, results, expected), expected)
        make_special(path, "empty")
        path.unlink()
        return f"{path.name}: {what}", outcome

    def _rank(self, path: Path) -> list[dict[str, Any]]:
        """The lists that the command writes.

        Raises:
            InputError: The command rejected its input as it should: with exit code 2 and one line.
        """
        self.output.unlink(missing_ok=True)
        said, printed = io.StringIO(), io.StringIO()
        command = ["rank", "--model", str(self.folder / "model"), "--input", str(path), "--output", str(self.output)]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            code = main(command)
        line = said.getvalue().removesuffix("\n")
        if code == 2 and line.startswith("hf-rerank: ") and is_one_line(line) and not self.output.exists():
            raise InputError(line)
        if code != 0 or line:
            raise AssertionError(f"exit code {code}, {line[:200]!r}, output written: {self.output.exists()}")
        return [json.loads(result) for result in self.output.read_text().splitlines()]

    def _find_error(self, path: Path, results: list[dict[str, Any]], expected: str) -> str | None:
        if not results:
            return "nothing is ranked"
        if expected == SAME and [result["order"] for result in results] != expected_orders(ROWS):
            return f"another ranking: {results}"
        if path.suffix in (".jsonl", ".json"):
            try:
                return self._compare_with_python(path.read_bytes().decode("utf-8-sig"), path.suffix, results)
            except ValueError as error:
                return f"Python cannot read it: {str(error)[:150]!r}"
        return next(filter(None, map(wrong_ranking, results)), None)

    def _compare_with_python(self, text: str, suffix: str, results: list[dict[str, Any]]) -> str | None:
        """Compares with the same re-ranker applied to the rows that Python's JSON reader reads."""
        rows = json.loads(text) if suffix == ".json" and text.lstrip().startswith("[") else None
        rows = rows or [json.loads(line) for line in text.split("\n") if line.strip()]
        try:
            found = self.reranker.rerank([row for row in rows if row["price"] != []])
        except InputError:  # the file reader infers types from the whole file: all ids are text if some are
            return next(filter(None, map(wrong_ranking, results)), None)
        same = [(one["order"], one["scores"]) for one in found] == [(one["order"], one["scores"]) for one in results]
        return None if same else f"Python reads other lists: {found}, {results}"

    def _bytes(self, path: Path, kind: str, draw: random.Random) -> tuple[str, Path, str]:
        how, changed = damaged_bytes(self.contents[kind], draw)
        path.write_bytes(changed)
        return how, path, ANY

    def _fragment(self, path: Path, kind: str, draw: random.Random) -> tuple[str, Path, str]:
        """Replaces a number or a string in the text of a file."""
        if kind not in ("csv", "tsv", "jsonl", "json"):
            kind = "jsonl"
            path = path.with_suffix(".jsonl")
        text, new = self.contents[kind].decode(), draw.choice(FRAGMENTS)
        if kind == "jsonl" and draw.random() < 0.3:  # beyond the lines from which the types are inferred
            text *= 40
        old = draw.choice(
            ("30", "10", "-1", "0.5", "2.0", '"a"', '"ü"', "price", '"item_id"', "list_id", "[", "]", ",")
        )
        place = text.find(old, draw.randrange(len(text)))
        place = text.find(old) if place < 0 else place
        path.write_text(text[: max(0, place)] + new + text[max(0, place) + len(old) :], encoding="utf-8", newline="")
        return f"{old} becomes {new[:30]!r}", path, ANY

    def _value(self, path: Path, kind: str, draw: random.Random) -> tuple[str, Path, str]:
        del kind
        number, rows = draw.randrange(len(ROWS)), copy.deepcopy(ROWS)
        what, rows[number] = damaged_json(rows[number], draw)
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return what, path, ANY

    def _packing(self, path: Path, kind: str, draw: random.Random) -> tuple[str, Path, str]:
        content = self.contents[kind]
        how = draw.choice(
            ("plain as .gz", "gzip without .gz", "gzip", "cut gzip", "flipped gzip", "two", "twice", "bz2")
        )
        packed = gzip.compress(content)
        path = path if how == "gzip without .gz" else path.with_name(path.name + (".bz2" if how == "bz2" else ".gz"))
        path.write_bytes(
            {
                "plain as .gz": content,
                "cut gzip": packed[: draw.randrange(len(packed))],
                "flipped gzip": damaged_bytes(packed, draw)[1],
                "two": packed + gzip.compress(b"") + packed[:0],
                "twice": gzip.compress(packed),
                "bz2": bz2.compress(content),
            }.get(how, packed)
        )
        return how, path, SAME if how in ("gzip", "bz2", "two") and "json" not in path.suffixes else ANY

    def _encoding(self, path: Path, kind: str, draw: random.Random) -> tuple[str, Path, str]:
        if kind not in ("csv", "tsv", "jsonl", "json"):
            kind, path = "csv", path.with_suffix(".csv")
        text, how = (
            self.contents[kind].decode(),
            draw.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "crlf")),
        )
        content = text.replace("\n", "\r\n").encode() if how == "crlf" else text.encode(how)
        path.write_bytes(content)
        return how, path, SAME if how in ("utf-8-sig", "crlf") else ANY

    def _special(self, path: Path, kind: str, draw: random.Random) -> tuple[str, Path, str]:
        del kind
        what = draw.choice(SPECIAL_FILES)
        make_special(path, what)
        return what, path, ANY
