"""The card of prepared PRM Public lists: how they were made, and what a reader of results must know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_rerank.data.prepared import NO_REDISTRIBUTION, SIMULATED, Licence, make_dataset_card
from hf_rerank.data.report import PrepareReport
from hf_rerank.schema import ListSchema


def make_card(
    files: Sequence[Path], protocol: str, share: float, seed: int, schema: ListSchema, report: PrepareReport
) -> str:
    """The text of the card; arguments as for ``prepare_prm_public``."""
    simulated = schema.position is not None
    rule = {
        "ours": "Protocol `ours`: every line is kept; a `null` is a missing value.",
        "public": f"Protocol `public`: lines with a `null` are dropped, and {100 * share:g} % of the others are "
        f"drawn by a hash (seed {seed}).",
    }[protocol]
    how = [
        f"Source: {', '.join(f'`{path.name}`' for path in files)}; `list_id` is the part and the line number.",
        rule,
        "Split by `user_id`: md5 of its decimal text, first 8 hex digits modulo 10,000; 40 % `ranker_train`, 45 % "
        "`train`, 5 % `validation`, 10 % `test`.",
        "`ranker_train` is for initial rankers, click models and personalised vectors only.",
        "Initial order: the column `position`, 0 at the top; slots are in the order in which they were displayed."
        if simulated
        else "Initial order: the order of the row.",
        f"Lists are cut to {schema.max_list_length} items in the initial order.",
    ]
    caveats = [
        "Only lists with a click are in the raw data: metrics are conditional on a click.",
        "Under a split by user every user of `test` is unknown in training: `user_id` is for grouping, not a feature.",
    ]
    if schema.history:
        caveats.append(
            "The columns `history_*`, newest first, are features: earlier clicks of the user, simulated for each list "
            "separately; no list of this folder is in the history of another. PRM Public has no such columns. "
            f"Models read the newest {schema.max_history_length}."
        )
    else:
        caveats.append("The file is not known to be in order of time: nothing here is a user's history.")
    if simulated:
        caveats.append("These lists are simulated. `attraction` and `examination` are ground truth, not features.")
        licence = Licence(SIMULATED, "Simulated lists: no line of the original dataset is in them.")
    else:
        licence = Licence(
            NO_REDISTRIBUTION,
            "The lists come from the PRM Public dataset (Alibaba), which its authors publish and which may not be "
            "redistributed: keep this folder to yourself, and do not push it to a public repository.",
        )
    title = "PRM Public, simulated" if simulated else "PRM Public"
    return make_dataset_card(title, report, schema, how=how, caveats=caveats, licence=licence)
