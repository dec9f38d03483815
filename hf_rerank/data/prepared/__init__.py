"""Folders of prepared lists: the writer, the reader, the card, rewriting."""

from hf_rerank.data.prepared.card import (
    NO_REDISTRIBUTION,
    OWN,
    SCHEMA_FILE,
    SIMULATED,
    Card,
    Licence,
    dataset_card,
    licence_of,
    read_card,
    read_report,
    write_description,
)
from hf_rerank.data.prepared.reader import PreparedFolder, is_prepared, read_footer, read_prepared, shards_of
from hf_rerank.data.prepared.resumable import REJECTS_FILE, partial_folder, refuse_unfinished
from hf_rerank.data.prepared.rewriting import PreparedSource, in_two_steps
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
    "dataset_card",
    "in_two_steps",
    "is_prepared",
    "licence_of",
    "partial_folder",
    "read_card",
    "read_footer",
    "read_prepared",
    "read_report",
    "refuse_unfinished",
    "shards_of",
    "write_description",
    "write_lists",
]
