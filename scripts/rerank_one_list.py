"""Re-ranks one test list with a saved model and shows its items before and after.

python scripts/rerank_one_list.py --model RUN --data LISTS
"""

from __future__ import annotations

import argparse

from transformers.utils import logging

from hf_rerank import Reranker, load_lists
from hf_rerank.evaluation.tables import text_table

SHOWN = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or repository of the model")
    parser.add_argument("--data", required=True, help="folder of prepared lists")
    parser.add_argument("--number", type=int, default=0, help="number of the list in the test split (default: 0)")
    options = parser.parse_args()

    logging.disable_progress_bar()
    reranker = Reranker.from_pretrained(options.model)
    row = load_lists(options.data)["test"][options.number]
    (result,) = reranker.rerank([row])

    schema = reranker.processor.schema
    places = row[schema.position] if schema.position else list(range(len(result["order"])))
    before = sorted(range(len(places)), key=lambda slot: places[slot])
    print(
        f"list {row[schema.list_id] if schema.list_id else options.number}: the first {SHOWN} of {len(places)} ranks\n"
    )
    lines = []
    for place, (old, new) in enumerate(zip(before[:SHOWN], result["order"][:SHOWN], strict=True), start=1):
        came_from = places[new] + 1
        lines.append([str(place), _item(row, schema, old), _item(row, schema, new), f"{came_from:>2}"])
    print(text_table(["rank", "before", "after", "previous rank"], lines))


def _item(row: dict, schema, slot: int) -> str:  # type: ignore[no-untyped-def]
    """Formats an item's id, a mark if it was clicked, and its true attraction if known."""
    text = str(row[schema.items[0].name][slot]) + (" *" if row[schema.label][slot] > 0 else "  ")
    return text if schema.attraction is None else f"{text}{row[schema.attraction][slot]:7.3f}"


if __name__ == "__main__":
    main()
