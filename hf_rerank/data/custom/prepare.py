"""Writes a user's own lists into a folder of prepared lists, after checking every list."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from hf_rerank.data.custom.custom_source import CustomSource, LongSource
from hf_rerank.data.custom.files import Source, find_list_files, refuse_prepared
from hf_rerank.data.custom.options import ReadOptions
from hf_rerank.data.custom.own_files import OwnFiles
from hf_rerank.data.prepared import (
    SHARD_BYTES,
    refuse_unfinished,
    write_lists,
)
from hf_rerank.data.report import PrepareReport
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema
from hf_rerank.storage import refuse_output_over_input


def prepare_own(
    source: Source,
    output_dir: str | Path,
    *,
    schema: ListSchema | str | Path,
    split_by: str = "group",
    ranker_train: bool = False,
    max_list_length: int | None = None,
    cut: bool = False,
    options: ReadOptions | None = None,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> PrepareReport:
    """Writes a user's own files into a folder of prepared lists (see ``hf_rerank.data.prepared``).

    After an interruption, the next call with the same options resumes.

    Args:
        source: Files, as for ``load_lists``.
        output_dir: Folder to create; must be new or empty. It appears when it is complete.
        schema: Describes the columns, as an object or the path of its JSON file.
        split_by: ``"group"`` or ``"time:COLUMN"``, see ``load_lists``.
        ranker_train: Hold out 40 % of the users (by time: the oldest 40 %) for training an initial ranker.
        max_list_length: Maximum number of items per list. None: that of the schema.
        cut: Cut longer lists to the first items of the initial order; False: longer lists are errors. The labels of
            the items that were cut are kept in the column ``LABEL_cut``, so that metrics can cover all logged clicks.
        options: Options of the readers. None: the defaults.
        progress: Show progress bars for steps that take longer than a second.
        shard_bytes: Bytes of lists in memory after which a new shard starts. Default 1 GiB.

    Returns:
        The counts of lists, items and clicks, and the warnings.

    Raises:
        InputError: A list is wrong, or too long without ``cut``; two lists have the same id; an output folder that is
            not empty; other files or options than those of the call that is resumed.
    """
    if isinstance(source, str | Path):
        refuse_unfinished(source)
    refuse_prepared(source, "give the files that it was made from")
    schema = schema if isinstance(schema, ListSchema) else ListSchema.load(schema)
    if max_list_length is not None:
        if max_list_length < 1:
            raise InputError(f"max_list_length is {max_list_length}: expected at least 1")
        schema = schema.replace(max_list_length=max_list_length)
    files = find_list_files(source)
    # An output inside an input folder would be read as input when this is resumed.
    sources = [source] if isinstance(source, str | Path) else source
    refuse_output_over_input(output_dir, [path for path in sources if Path(path).is_dir()])
    own = OwnFiles(files, schema, options)
    with own.inputs.require_unchanged(), tqdm(unit="row", desc="Reading", delay=1, disable=not progress) as bar:
        own.scan(bar.update)
    kind = LongSource if own.long else CustomSource
    lists = kind(own, split_by=split_by, ranker_train=ranker_train, cut=cut, progress=progress)
    return write_lists(lists, output_dir, progress=progress, shard_bytes=shard_bytes)
