"""Reading a folder of prepared lists: its schema, and its Parquet shards by split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.data.prepared.card import SCHEMA_FILE
from hf_rerank.data.splits import SPLITS
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema

_SHARD = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")


@dataclass(frozen=True)
class PreparedFolder:
    """The contents of a folder of prepared lists.

    Attributes:
        schema: The schema in ``schema.json``.
        files: Split -> its shards.
        lists: Split -> number of its lists.
        columns: Columns of the shards.
    """

    schema: ListSchema
    files: dict[str, list[Path]]
    lists: dict[str, int]
    columns: pa.Schema


def is_prepared(folder: str | Path) -> bool:
    """Whether ``folder`` has the ``schema.json`` of a folder of prepared lists."""
    return (Path(folder) / SCHEMA_FILE).is_file()


def read_prepared(folder: str | Path) -> PreparedFolder:
    """Reads the contents of a folder of prepared lists; of the shards only their footers.

    Raises:
        InputError: No ``schema.json``, no shards, or a shard that is missing, truncated, or has other columns.
    """
    folder = Path(folder)
    if not is_prepared(folder):
        raise InputError(
            f"{folder} is not a folder of prepared lists (it has no {SCHEMA_FILE}): make one with hf-rerank prepare"
        )
    schema = ListSchema.load(folder / SCHEMA_FILE)
    files = {
        split: [folder / name for name in names]
        for split, names in group_shards(str(folder), sorted(path.name for path in folder.glob("*.parquet"))).items()
    }
    first = next(iter(files.values()))[0]
    columns: pa.Schema | None = None
    lists: dict[str, int] = {}
    for split, shards in files.items():
        for shard in shards:
            footer = read_footer(shard)
            lists[split] = lists.get(split, 0) + footer.num_rows
            found = footer.schema.to_arrow_schema().remove_metadata()
            columns = found if columns is None else columns
            if not found.equals(columns):
                raise InputError(f"{shard} has other columns than {first}: the folder mixes two preparations")
    assert columns is not None
    return PreparedFolder(schema, files, lists, columns)


def group_shards(where: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Groups shards by split, in order.

    Args:
        where: The folder or repository, for messages.
        names: The names of its Parquet files, sorted.

    Raises:
        InputError: There are none, a shard is missing, or a name is not that of a shard.
    """
    if not names:
        raise InputError(
            f"{where} has a {SCHEMA_FILE} but no shards: expected files such as train-00000-of-00001.parquet"
        )
    files: dict[str, list[str]] = {}
    for name in names:
        parts = _SHARD.fullmatch(name)
        if parts is None:
            raise InputError(
                f"{where}/{name} is not the name of a shard: expected one such as train-00000-of-00001.parquet"
            )
        files.setdefault(parts["split"], []).append(name)
        whole = [f"{parts['split']}-{number:05d}-of-{parts['count']}.parquet" for number in range(int(parts["count"]))]
        missing = [shard for shard in whole if shard not in names]
        if missing or name not in whole:
            wrong = f"lacks the shard {missing[0]}" if missing else f"holds {name}, which belongs to no complete set"
            raise InputError(f"{where} {wrong}: prepare the lists again, or copy the whole folder")
    for split, shards in files.items():
        if len({shard[-len("00001.parquet") :] for shard in shards}) > 1:
            raise InputError(f"{where} holds two sets of shards of {split}: keep one of them")
    order = sorted(files, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return {split: files[split] for split in order}


def read_footer(path: Path) -> pq.FileMetaData:
    """The metadata of a Parquet file.

    Raises:
        InputError: It is not a Parquet file, or is truncated.
    """
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a complete Parquet file: {error}; make or copy it again") from None
