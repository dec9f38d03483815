"""PRM Public as a stream of ``datasets``: whole Arrow batches directly from the raw text.

In its own module, with few imports: for streaming, ``datasets`` replaces the names ``open``, ``Path``, ``os`` and
``pyarrow`` in the module of a builder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets

from hf_rerank.data.splits import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

    from hf_rerank.data.prm_public.source import TextRange


class PRMPublicText(datasets.ArrowBasedBuilder):
    """One stream per split; ``as_streaming_dataset()`` makes them. The ranges of text are the shards.

    Args:
        ranges: Ranges of the raw files, from ``hf_rerank.data.prm_public.find_ranges``.
        columns: Columns of the lists.
        options: Options of ``hf_rerank.data.prm_public.iter_batches``.
        kwargs: Options of the builder: ``cache_dir``.
    """

    def __init__(
        self, *, ranges: Sequence[TextRange], columns: pa.Schema, options: Mapping[str, Any], **kwargs: Any
    ) -> None:
        self.ranges, self.columns, self.options = list(ranges), columns, dict(options)
        super().__init__(**kwargs)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(self.columns))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"ranges": self.ranges, "split": split}) for split in SPLITS
        ]

    def _generate_tables(self, ranges: Sequence[TextRange], split: str) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        from hf_rerank.data.prm_public.source import iter_batches

        for shard, source in enumerate(ranges):
            for number, table in enumerate(iter_batches([source], splits=(split,), **self.options)):
                yield (shard, number), table
