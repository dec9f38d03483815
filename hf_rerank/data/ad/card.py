"""The card of prepared Ad lists: how they were made, and what a reader of results must know."""

from __future__ import annotations

from hf_rerank.data.ad.columns import AdFiles
from hf_rerank.data.ad.history import MAX_MINUTES
from hf_rerank.data.ad.sessions import MAX_SESSION_ITEMS, SESSION_SECONDS
from hf_rerank.data.prepared import NO_REDISTRIBUTION, SIMULATED, Licence, make_dataset_card
from hf_rerank.data.report import PrepareReport
from hf_rerank.schema import ListSchema


def make_card(files: AdFiles, protocol: str, schema: ListSchema, report: PrepareReport) -> str:
    """The text of the card; arguments as for ``prepare_ad``."""
    simulated = schema.position is not None
    rule = {
        "ours": "Protocol `ours`: every session with at least 2 items and a click is a list.",
        "public": "Protocol `public`: users with fewer than 3 impressions, or without a click, are dropped; for each "
        "other user the most recent session with a click is a list.",
    }[protocol]
    order = "their initial order (column `position`, 0 at the top)" if simulated else "order of time"
    names = ", ".join(f"`{path.name}`" for path in files.list_existing())
    how = [
        f"Source: {names}; `list_id` is the user, and the time of the "
        "newest impression of the session in Unix seconds.",
        f"A user's impressions are ordered by time, newest first; a session holds those at most {SESSION_SECONDS} "
        "seconds older than its newest; the next session begins with the newest not in one yet. In a session the "
        "items are ordered by time, oldest first; equal times keep the order of the file.",
        rule,
        f"Of longer sessions the earliest {MAX_SESSION_ITEMS} items are kept; then lists are cut to the first "
        f"{schema.max_list_length} in {order}.",
        "`brand`, `pvalue_level` and `new_user_class_level` have missing values; ads that `ad_feature.csv` lacks and "
        "users that `user_profile.csv` lacks have missing values in all their columns.",
        "Split by `user`: md5 of its decimal text, first 8 hex digits modulo 10,000; 40 % `ranker_train`, 45 % "
        "`train`, 5 % `validation`, 10 % `test`.",
        "`ranker_train` is for initial rankers, click models and personalised vectors only.",
    ]
    if schema.history:
        how.append(
            f"`history_*`: the user's newest {schema.max_history_length} behaviours not later than the first "
            f"impression of the session, newest first; `history_minutes_ago` are whole minutes before it, at most "
            f"{MAX_MINUTES:,}."
        )
    else:
        how.append("There are no columns of history: `behavior_log.csv` was missing, or was left out.")
    caveats = [
        "Only sessions with a click are kept: metrics are conditional on a click.",
        "Under a split by user every user of `test` is unknown in training: `user` is for grouping, not a feature.",
    ]
    if simulated:
        caveats.append("These lists are simulated. `attraction` and `examination` are ground truth, not features.")
        licence = Licence(SIMULATED, "Simulated lists: no line of the original dataset is in them.")
    else:
        caveats.append("The initial order is chronological, not that of an initial ranker.")
        licence = Licence(
            NO_REDISTRIBUTION,
            "The lists come from the dataset 'Ad Display/Click Data on Taobao.com' (Alibaba, Tianchi data set 56), "
            "which may not be redistributed: keep this folder to yourself, and do not push it to a public repository.",
        )
    title = "Ad, simulated" if simulated else "Ad"
    return make_dataset_card(title, report, schema, how=how, caveats=caveats, licence=licence)
