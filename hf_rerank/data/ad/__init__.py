"""Ad (Alibaba, Tianchi data set 56): raw files to lists."""

from hf_rerank.data.ad.columns import HISTORY_LENGTH, MAX_LIST_LENGTH, AdFiles, ad_columns, ad_schema, find_ad_files
from hf_rerank.data.ad.sessions import MAX_SESSION_ITEMS
from hf_rerank.data.ad.source import AdSource, prepare_ad

__all__ = [
    "HISTORY_LENGTH",
    "MAX_LIST_LENGTH",
    "MAX_SESSION_ITEMS",
    "AdFiles",
    "AdSource",
    "ad_columns",
    "ad_schema",
    "find_ad_files",
    "prepare_ad",
]
