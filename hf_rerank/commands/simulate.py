"""``hf-rerank simulate``: writes simulated lists in the raw format of a public dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import Parser, parse_settings
from hf_rerank.errors import InputError, suggestion


def add(commands: Any) -> None:
    """Adds the command and its options."""
    simulate = commands.add_parser("simulate", help="write simulated lists in the raw format of a public dataset")
    formats = simulate.add_subparsers(dest="format", metavar="FORMAT", required=True, parser_class=Parser)
    prm_public = formats.add_parser("prm_public", help="PRM Public's text, with the ground truth in a file beside it")
    _add_common_options(prm_public)
    prm_public.add_argument(
        "--click-model",
        choices=("position", "cascade", "user_browsing"),
        help="how users read a list (default: position, each position is examined with its own probability)",
    )
    prm_public.set_defaults(run=_simulate_prm_public, parser=prm_public)
    ad = formats.add_parser("ad", help="Ad's four CSV files, with the ground truth in a file beside them")
    _add_common_options(ad)
    ad.add_argument(
        "--behaviours",
        type=int,
        metavar="N",
        help="rows of behavior_log.csv; 0: do not write it (default: behaviours_per_user of the world, 30)",
    )
    ad.set_defaults(run=_simulate_ad, parser=ad)


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", required=True, type=Path, metavar="RAW", help="folder for the raw files")
    parser.add_argument("--lists", required=True, type=int, metavar="N", help="number of lists")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed; the same seed writes the same bytes (default: 0)"
    )
    parser.add_argument(
        "--world",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the simulated world, such as initial_noise=3",
    )


def _simulate_prm_public(options: argparse.Namespace) -> None:
    from hf_rerank.data.simulation import PRMWorld, simulate_prm

    chosen = [f"click_model={options.click_model}"] if options.click_model else []
    world = _make_world(PRMWorld, [*options.world, *chosen])
    path = simulate_prm(options.output_dir, options.lists, seed=options.seed, world=world, progress=True)
    print(f"{options.lists:,} lists in {path}, with the ground truth beside it")


def _simulate_ad(options: argparse.Namespace) -> None:
    from hf_rerank.data.simulation import AdWorld, simulate_ad

    path = simulate_ad(
        options.output_dir,
        options.lists,
        seed=options.seed,
        world=_make_world(AdWorld, options.world),
        behaviours=options.behaviours,
        progress=True,
    )
    print(f"{options.lists:,} lists, with and without a click, in {path}; other files and the ground truth beside it")


def _make_world(kind: Any, settings: list[str]) -> Any:
    from dataclasses import fields

    parameters, known = parse_settings("--world", settings), [field.name for field in fields(kind)]
    for name in parameters:
        if name not in known:
            raise InputError(f"the simulated world has no parameter {name!r}{suggestion(name, known)}")
    return kind(**parameters)
