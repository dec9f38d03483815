"""What the tests of this folder push, and with which token."""

from __future__ import annotations

from pathlib import Path

from hf_rerank import Categorical, Dense, ListSchema

KEPT = Path(__file__).parent / "kept" / "tiny_prm"
# Of the length of real ones; looked for in all that is said and written.
TOKEN = "hf_canaryCanaryCanaryCanaryCanary12345"
SCHEMA = ListSchema(
    items=[Categorical("item_id"), Dense("price")], list_id="list_id", group="user_id", max_list_length=4
)
