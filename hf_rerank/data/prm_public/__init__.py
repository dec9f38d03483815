"""PRM Public (Alibaba; Pei et al. 2019): raw text to lists."""

from hf_rerank.data.prm_public.columns import MAX_LIST_LENGTH, find_files, prm_public_columns, prm_public_schema
from hf_rerank.data.prm_public.source import PRMPublicSource, Rules, iter_batches, prepare_prm_public
from hf_rerank.data.prm_public.text import TextRange, find_ranges
from hf_rerank.data.prm_public.truth import read_truth_header, truth_file

__all__ = [
    "MAX_LIST_LENGTH",
    "PRMPublicSource",
    "Rules",
    "TextRange",
    "find_files",
    "find_ranges",
    "iter_batches",
    "prepare_prm_public",
    "prm_public_columns",
    "prm_public_schema",
    "read_truth_header",
    "truth_file",
]
