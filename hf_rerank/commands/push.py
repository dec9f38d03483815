"""``hf-rerank push``: uploads a trained re-ranker or prepared lists to the Hub."""

from __future__ import annotations

import argparse
from typing import Any

from hf_rerank.commands.parsing import disable_short_progress_bars
from hf_rerank.errors import InputError


def add(commands: Any) -> None:
    """Adds the command and its options."""
    push = commands.add_parser(
        "push",
        help="upload a trained re-ranker or prepared lists to the Hub",
        epilog="The token is that of `hf auth login`, or HF_TOKEN.",
    )
    what = push.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="RUN", help="folder of a trained re-ranker")
    what.add_argument("--data", metavar="LISTS", help="folder of prepared lists")
    push.add_argument("--repo-id", required=True, metavar="SOMEONE/NAME", help="repository; created if missing")
    push.add_argument("--private", action="store_true", help="make a new repository private; refuse a public one")
    push.add_argument("--revision", metavar="BRANCH", help="branch to commit to; created if missing (default: main)")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    push.add_argument("--message", metavar="TEXT", help="commit message")
    push.add_argument(
        "--i-have-the-right-to-redistribute",
        action="store_true",
        help="push lists whose card forbids redistribution, with permission from the owner of the data",
    )
    push.set_defaults(run=run, parser=push)


def run(options: argparse.Namespace) -> None:
    """Pushes."""
    from hf_rerank.data.push_lists import push_lists
    from hf_rerank.hub import push_model

    chosen: dict[str, Any] = {
        "private": options.private or None,
        "revision": options.revision,
        "create_pr": options.create_pr,
    }
    if options.message is not None:
        chosen["commit_message"] = options.message
    if options.data is not None:
        granted = options.i_have_the_right_to_redistribute
        commit = push_lists(options.data, options.repo_id, have_the_right_to_redistribute=granted, **chosen)
    else:
        if options.i_have_the_right_to_redistribute:
            raise InputError("--i-have-the-right-to-redistribute is about lists: use it with --data")
        disable_short_progress_bars()
        commit = push_model(options.model, options.repo_id, tell=print, **chosen)
    print(f"pushed: {commit.pr_url or commit.commit_url}")
