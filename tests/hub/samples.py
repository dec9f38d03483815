"""What the tests of this folder push, and the token that they use."""

from __future__ import annotations

from pathlib import Path

from hf_rerank import Categorical, Dense, ListSchema

KEPT = Path(__file__).parent / "kept" / "tiny_prm"
# As long as a real token; tests search for it in all output and files.
TOKEN = "hf_canaryCanaryCanaryCanaryCanary12345"
SCHEMA = ListSchema(
    items=[Categorical("item_id"), Dense("price")], list_id="list_id", group="user_id", max_list_length=4
)
