"""Runs a comparison: trains the missing runs, summarizes all runs, and writes the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_rerank.comparison.arms import LOGGED, TREES, Arm, Plan
from hf_rerank.comparison.findings import Findings, summarize
from hf_rerank.comparison.measuring import NDCG, measure_scores, primary_measure, score_logged_order
from hf_rerank.comparison.progress import Progress, print_line
from hf_rerank.comparison.report import write_report
from hf_rerank.comparison.run_folder import RunFolder, describe
from hf_rerank.comparison.training import ArmRunner
from hf_rerank.errors import InputError
from hf_rerank.evaluation.score_files import NamedLists, read_scores
from hf_rerank.initial_rankers.ranker_train import users_of
from hf_rerank.schema import ListSchema
from hf_rerank.storage import remove
from hf_rerank.training.checkpointing_trainer import TrainingInterrupted


def compare_rerankers(
    splits: Mapping[str, Any],
    schema: ListSchema,
    folder: str | Path,
    plan: Plan,
    *,
    scores: Mapping[str, str | Path] | None = None,
    display_order: bool = True,
    say: Callable[[str], None] = print_line,
) -> Findings:
    """Trains every arm with every seed, compares them on the test lists, and recommends one.

    Runs already finished in the folder are not repeated; an interrupted run resumes from its last checkpoint.

    Args:
        splits: ``train``, ``validation`` and ``test``, ``datasets`` Datasets with labels.
        schema: Schema of the lists.
        folder: Folder for runs and report.
        plan: The models and options to train.
        scores: Name of another system -> file of its scores for the test lists; see
            ``hf_rerank.evaluation.score_files``.
        display_order: Whether clicks may have been logged in the given order, so that it carries position bias.
        say: Called with each line of progress.

    Returns:
        The findings; also written to ``report.md``, ``report.json`` and ``report.png`` in the folder.

    Raises:
        InputError: An option, the lists or a file of scores are wrong, or the folder contains another comparison.
    """
    plan.check()
    for split in ("train", "validation", "test"):
        if split not in splits or not len(splits[split]):
            raise InputError(f"the lists have no {split} split, or it is empty: a comparison needs all three")
    if plan.trees:
        _require_trees()
    named = NamedLists.from_dataset(splits["test"], schema) if scores else None
    systems = {}
    for name, path in (scores or {}).items():
        if name == LOGGED or name in {arm.name for arm in plan.arms()}:
            raise InputError(f"a system is named {name!r}, like an arm of the comparison: choose another name")
        assert named is not None
        systems[name], unused = read_scores(path, named)
        if unused:
            say(f"{name}: {unused:,} lists of {path} are not in the test split; their scores are ignored")
    runner = ArmRunner(splits, schema, plan)
    runs: dict[Arm, dict[int, dict[str, Any]]] = {arm: {} for arm in plan.arms()}
    run_folder = RunFolder(folder)
    with run_folder.lock(describe(splits, schema, plan), plan):
        # By seed first, so that every arm has a run early on.
        ordered = [(arm, seed) for seed in range(plan.seeds) for arm in runs]
        progress = Progress([arm.name for arm, _ in ordered], say)
        finished = {key: run_folder.read_result(*key) for key in ordered}
        for (arm, seed), result in finished.items():
            if result is not None:
                runs[arm][seed] = result
                progress.skip(arm.name)
        if any(finished.values()):
            say(f"{sum(map(bool, finished.values()))} of {len(ordered)} runs are already finished in {folder}")
        for arm, seed in ordered:
            if seed in runs[arm]:
                continue
            progress.begin(f"{arm.name}, seed {seed}")
            try:
                result = runner.run(arm, seed, run_folder.work_path(arm, seed), progress.step)
            except TrainingInterrupted as stopped:
                raise TrainingInterrupted(
                    f"stopped in {arm.name}, seed {seed}; the same command resumes", stopped.signal
                ) from None
            run_folder.save(arm, seed, result)
            runs[arm][seed] = result
            progress.finish(arm.name, seed, f"NDCG@10 {result['validation'][NDCG]:.4f} on validation")
        options = runner.evaluation_options(run_folder.path / "work")
        remove(run_folder.path / "work")
        fixed: dict[str, dict[str, Any]] = {}
        if plan.has_order:
            fixed[LOGGED] = {}
            for split in ("validation", "test"):
                order = score_logged_order(runner.processor, splits[split])
                found = measure_scores(order, runner.processor, splits[split], **options)
                fixed[LOGGED] |= {split: found.measures, "per_list": found.per_list.tolist()}
        for name, values in systems.items():
            found = measure_scores(values, runner.processor, splits["test"], **options)
            fixed[name] = {"test": found.measures, "per_list": found.per_list.tolist()}
        for of_seed in runs.values():
            for result in of_seed.values():
                # JSON has no NaN.
                result["per_list"] = [math.nan if value is None else value for value in result["per_list"]]
        findings = summarize(
            runs,
            fixed,
            measure=primary_measure(schema),
            groups=users_of(splits["test"], schema),
            display_order=display_order and plan.has_order,
        )
        about = {
            "lists": ", ".join(f"{len(splits[split]):,} {split}" for split in ("train", "validation", "test")),
            "seeds": ", ".join(map(str, range(plan.seeds))),
            "config options": dict(plan.config) or "defaults",
            "training options": dict(plan.training) or "defaults",
            "principles": plan.preset,
        }
        write_report(run_folder.path, findings, about)
    return findings


def _require_trees() -> None:
    from hf_rerank.initial_rankers.boosting import require_lightgbm

    try:
        require_lightgbm()
    except InputError:
        raise InputError(
            f'{TREES} needs LightGBM: pip install "hf-rerank[lightgbm]", or compare without it (--without-lambdamart)'
        ) from None
