"""A user's files as a stream of ``datasets``: whole Arrow tables.

In its own module, with few imports: for streaming, ``datasets`` replaces the names ``open``, ``Path``, ``os`` and
``pyarrow`` in the module of a builder.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import datasets

if TYPE_CHECKING:
    import pyarrow as pa

    from hf_rerank.data.custom.files import ListFile
    from hf_rerank.data.custom.own_files import OwnFiles


class OwnStream(datasets.ArrowBasedBuilder):
    """One stream of a user's files; ``as_streaming_dataset()`` makes it. The parts of the files are its shards."""

    def __init__(self, *, own: OwnFiles, parts: Sequence[ListFile], split: str, **kwargs: Any) -> None:
        self.own, self.parts, self.split = own, list(parts), split
        super().__init__(**kwargs)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(self.own.columns))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=self.split, gen_kwargs={"parts": self.parts})]

    def _generate_tables(self, parts: Sequence[ListFile]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        for shard, part in enumerate(parts):
            counts: dict[str, int] = {}
            for number, table in enumerate(self.own.read_lists(part, counts)):
                yield (shard, number), table
            for what, count in counts.items():
                warnings.warn(f"{part.path}: {what}: {count:,}", stacklevel=2)
