"""Folders of prepared lists: the writer, the reader, the card, rewriting."""

from hf_rerank.data.prepared.card import (
    NO_REDISTRIBUTION,
    OWN,
    SCHEMA_FILE,
    SIMULATED,
    Card,
    Licence,
    find_licence,
    make_dataset_card,
    read_card,
    read_report,
    write_description,
)
from hf_rerank.data.prepared.reader import PreparedFolder, group_shards, is_prepared, read_footer, read_prepared
from hf_rerank.data.prepared.resumable import REJECTS_FILE, partial_folder, refuse_unfinished
from hf_rerank.data.prepared.rewriting import PreparedSource, prepare_in_two_steps
from hf_rerank.data.prepared.writer import ON_ERROR, SHARD_BYTES, write_lists

__all__ = [
    "NO_REDISTRIBUTION",
    "ON_ERROR",
    "OWN",
    "REJECTS_FILE",
    "SCHEMA_FILE",
    "SHARD_BYTES",
    "SIMULATED",
    "Card",
    "Licence",
    "PreparedFolder",
    "PreparedSource",
    "find_licence",
    "group_shards",
    "is_prepared",
    "make_dataset_card",
    "partial_folder",
    "prepare_in_two_steps",
    "read_card",
    "read_footer",
    "read_prepared",
    "read_report",
    "refuse_unfinished",
    "write_description",
    "write_lists",
]
