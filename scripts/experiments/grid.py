"""The grid of experiments on principled learning: every run that a question needs, one JSON file per run.

    python scripts/experiments/grid.py --output-dir GRID --plan
    python scripts/experiments/grid.py --output-dir GRID --seeds 5 [--questions 1 2 5] [--shard 0/2]

One run is one (world, length, model, arm, seed): trained on ``train``, its best epoch chosen on ``validation`` by
NDCG@10, evaluated once on ``test``. Runs with the same seed share lists, initial weights and batch order, so
differences are paired. Learning rates are chosen first, per model and format, on the validation lists of ``trained``
or of ``ad_trained``, with a separate seed.

A run whose file exists is not repeated, so the command can be stopped at any time and resumes. Two processes share the
work with ``--shard 0/2`` and ``--shard 1/2``. Values per list, for the bootstrap over users, are stored next to the
JSON in ``.safetensors`` files. ``questions.py`` makes the tables and figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from worlds import LISTS, WORLDS, World, make_world

ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "dnn": {"hidden_sizes": [200, 80]},
    "dlcm": {"hidden_size": 64},
    "midnn": {"hidden_sizes": [256, 128]},
    "prm": {**ENCODER, "num_attention_heads": 1},
    "setrank": {**ENCODER, "num_attention_heads": 2},
    "pear": {**ENCODER, "num_attention_heads": 2, "feature_hidden_size": 64},
    "raise": ENCODER,
}
RERANKERS = ("prm", "setrank", "dlcm", "midnn", "pear", "raise")
WHOLE = 30  # items of the longest lists, which are not cut
EPOCHS, BATCH = 10, 128
DEFAULT = "augmented"  # the arm with the library's default preset
LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
CHOOSING_SEED = 1000


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        principled: Preset of principled learning.
        kwargs: Settings of the preset to override.
        own: Own order with a gradient: arguments of ``hf_rerank.principled.Soft``. Empty: the hard order.
        perturbed: Other perturbation than the preset's: arguments of ``hf_rerank.principled.Perturbed``.
        config: Options of the model's config, besides those of ``MODELS``.
        order: Whether the model is given the initial order. DLCM, which must read one, gets a fixed random order.
        arguments: Further training arguments.
    """

    principled: str = "none"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    perturbed: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    order: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _times(preset: str, factor: float) -> Arm:
    weights = {"scaled": (2.0, 0.5), "augmented": (6.0, 1.5), "paper": (1.0, 1.0)}[preset]
    return Arm(preset, {"convergence_weight": factor * weights[0], "adversarial_weight": factor * weights[1]})


DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.1}
DEFAULTS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
DEFAULT_BUDGET = {"num_train_epochs": 5, "learning_rate": 1e-3, "per_device_train_batch_size": 64}
PAPER_RATES = (1e-4, 5e-5, 1e-5)
FACTORS = {"augmented": (0.1, 3.0, 10.0, 100.0), "paper": (0.1, 10.0)}
ARMS: dict[str, Arm] = {
    "none": Arm(),
    "no_order": Arm(order=False),
    "scaled": _times("scaled", 1),
    "paper": Arm("paper"),
    "reference": Arm("reference"),
    # Parts and controls.
    "p1": Arm("scaled", {"convergence_weight": 2.0, "adversarial_weight": 0.0}),
    "p2": Arm("scaled", {"convergence_weight": 0.0, "adversarial_weight": 0.5}),
    "r_drop": Arm("r_drop", config=DROPOUT),
    "augmentation": Arm("augmentation"),
    # Both: the task loss on every pass, and the terms, whose weights relative to the task loss are those of `scaled`.
    "augmented": Arm("augmented"),
    # Dropout.
    "none_dropout": Arm(config=DROPOUT),
    "augmented_dropout": Arm("augmented", config=DROPOUT),
    # What `hf-rerank train --model prm` chooses for these lists, and the same without dropout.
    "none_defaults": Arm(config=DEFAULTS | DROPOUT, arguments=DEFAULT_BUDGET),
    "augmented_defaults": Arm("augmented", config=DEFAULTS | DROPOUT, arguments=DEFAULT_BUDGET),
    "none_defaults_without_dropout": Arm(config=DEFAULTS, arguments=DEFAULT_BUDGET),
    "augmented_defaults_without_dropout": Arm("augmented", config=DEFAULTS, arguments=DEFAULT_BUDGET),
    # Weights, as factors on both of the preset.
    **{f"{preset}_x{factor:g}": _times(preset, factor) for preset, factors in FACTORS.items() for factor in factors},
    # Perturbations other than the adjacent swap, and larger ones.
    **{f"scaled_{kind}": Arm("scaled", {"perturbation": kind}) for kind in ("random_swap", "window_shuffle")},
    **{
        f"augmented_{kind}_4": Arm("augmented", perturbed={"kind": kind, "strength": 4})
        for kind in ("random_swap", "window_shuffle", "reverse_window")
    },
    # The paper's settings of PRM: Adam with a constant rate of 1e-4, 5e-5 or 1e-5, and at least 30 epochs.
    **{
        f"{preset}_rate{rate:g}": Arm(
            preset,
            arguments={
                "learning_rate": rate,
                "num_train_epochs": 30,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
            },
        )
        for preset in ("none", "paper")
        for rate in PAPER_RATES
    },
    # The own order with a gradient.
    "softsort": Arm("scaled", own={"relaxation": "softsort"}),
    "neuralsort": Arm("scaled", own={"relaxation": "neuralsort"}),
    "straight_through": Arm("scaled", own={"relaxation": "softsort", "straight_through": True}),
}


def base_of(arm: str) -> str:
    """Returns the arm that an arm is compared with: the same settings without principles, if they are run."""
    if arm == "none_defaults_without_dropout":
        return "none_defaults"
    preset, _, settings = arm.partition("_")
    same = f"none_{settings}"
    return same if preset != "none" and same in ARMS else "none"


@dataclass(frozen=True)
class Run:
    """One cell of the grid with one seed."""

    world: str
    length: int
    model: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.world}-{self.length}-{self.model}-{self.arm}-{self.seed}"


def train_run(run: Run, root: Path, folder: Path, learning_rate: float) -> tuple[Any, World]:
    """Trains one run; returns its trainer and its lists.

    Args:
        run: The run.
        root: Folder of the simulated lists.
        folder: Folder for checkpoints, which are removed at the end.
        learning_rate: Learning rate, unless the arm sets one.
    """
    from runs import train

    from hf_rerank import ListProcessor

    arm = ARMS[run.arm]
    without_order = not arm.order and run.model == "dlcm"
    lists = make_world(root, run.world, run.length, random_order=without_order)
    config = {"hidden_dropout_prob": 0.0, **MODELS[run.model], **arm.config}
    if not arm.order and not without_order:
        config["position_input"] = "none"
    settings = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "learning_rate": learning_rate}
    output = folder / "checkpoints" / f"{run.name}-{os.getpid()}"  # two processes may choose the same learning rate
    objective = _own_objective(arm, run.seed)
    trainer = train(
        output,
        lists.splits,
        ListProcessor.from_lists(lists.splits["train"], schema=lists.schema),
        model=run.model,
        seed=run.seed,
        config=config,
        objective=objective,
        **({} if objective else {"principled": arm.principled, "principled_kwargs": dict(arm.kwargs)}),
        save_total_limit=1,
        save_only_model=True,
        **{**settings, **arm.arguments},
    )
    shutil.rmtree(output, ignore_errors=True)
    return trainer, lists


def train_and_measure(run: Run, root: Path, folder: Path, learning_rate: float) -> dict[str, Any]:
    """Trains and evaluates one run; returns JSON values. Values per list are written to ``folder``."""
    from safetensors.numpy import save_file

    from hf_rerank.evaluation import evaluate, evaluate_orders

    started = time.process_time()
    trainer, lists = train_run(run, root, folder, learning_rate)
    seconds = time.process_time() - started
    processor = trainer.processor
    test = lists.splits["test"]
    values = measure_lists(trainer.model, processor, test)
    save_file(values, folder / f"{run.name}.safetensors")
    history = [
        {key: entry[key] for key in entry if key in HISTORY} for entry in trainer.state.log_history if "epoch" in entry
    ]
    return {
        "world": run.world,
        "length": run.length,
        "model": run.model,
        "arm": run.arm,
        "seed": run.seed,
        "learning_rate": trainer.args.learning_rate,
        "epochs": trainer.args.num_train_epochs,
        "cpu_seconds": round(seconds, 2),
        "history": history,
        "fixed_points": by_fixed_point(values),
        "initial": _numbers(evaluate_orders(processor, test)["initial"]),
        "validation": _numbers(
            evaluate(trainer.model, processor, lists.splits["validation"], swaps="one", max_steps=0)
        ),
        "test": _numbers(evaluate(trainer.model, processor, test)),
    }


HISTORY = ("epoch", "loss", "task_loss", "eval_loss", "eval_ndcg@10", "eval_p1_obedience@5", "eval_p2_obedience@5")


def _own_objective(arm: Arm, seed: int) -> Any:
    """The objective of an arm that no preset describes; None if one does."""
    from hf_rerank.principled import Perturbed, Soft, preset_objective

    if not arm.own and not arm.perturbed:
        return None
    objective = preset_objective(arm.principled, seed=seed, **arm.kwargs)

    def order(given: Any) -> Any:
        if arm.own and given == "own":
            return Soft(**arm.own)
        return Perturbed(**arm.perturbed) if arm.perturbed and isinstance(given, Perturbed) else given

    return replace(objective, passes=tuple(replace(entry, order=order(entry.order)) for entry in objective.passes))


def measure_lists(model: Any, processor: Any, lists: Any) -> dict[str, np.ndarray]:
    """Computes per list: NDCG@10 and expected clicks of the given order and of the model's, and obedience."""
    from hf_rerank import metrics
    from hf_rerank.evaluation.evaluator import encode_batches, measure_obedience
    from hf_rerank.schema import MODEL_TENSORS

    found: dict[str, list[np.ndarray]] = {}
    examination = processor.schema.examination
    model.eval()
    for batch in encode_batches(lists, processor):
        inputs = {name: batch[name] for name in MODEL_TENSORS if name in batch}
        output = measure_obedience(model, inputs, obedience_k=5, swaps="one")
        mask = batch["mask"]
        for name, scores in (("", output.logits), ("initial_", -batch["position_ids"].float())):
            values = {
                f"{name}ndcg@10": metrics.ndcg(scores, batch["labels"], mask=mask, k=10, reduction="none"),
                f"{name}expected_clicks": metrics.expected_clicks(
                    scores, batch["attraction"], examination, mask=mask, reduction="none"
                ),
            }
            for key, value in values.items():
                found.setdefault(key, []).append(np.asarray(value, dtype=np.float32))
        for key in ("p1_item_obedience", "p1_obedience", "fixed_point_rate", "fixed_point_steps"):
            found.setdefault(key, []).append(output.losses[key].float().numpy())
    return {name: np.concatenate(values) for name, values in found.items()}


def by_fixed_point(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Computes means over the lists that reach a fixed point, over those that do not, and by quartile of item P1."""
    obedience = values["p1_item_obedience"]
    quarters = np.quantile(obedience, [0.25, 0.5, 0.75])
    groups = {
        "reach": values["fixed_point_rate"] == 1,
        "do_not_reach": values["fixed_point_rate"] == 0,
        **{f"quarter_{index + 1}": np.digitize(obedience, quarters) == index for index in range(4)},
    }
    names = ("initial_expected_clicks", "expected_clicks", "initial_ndcg@10", "ndcg@10", "p1_item_obedience")
    return {
        group: {"lists": int(there.sum()), **{name: float(values[name][there].mean()) for name in names}}
        for group, there in groups.items()
        if there.any()
    }


def _numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if isinstance(value, int | float)}


# --- the runs of each question, the most valuable first ---


def _cells(worlds: Iterable[str], lengths: Iterable[int], models: Iterable[str], arms: Iterable[str]) -> list[Any]:
    return [(w, n, m, a) for m in models for n in lengths for w in worlds for a in arms]


_THREE = ("trained", "informed", "display")
CANDIDATES = (DEFAULT, "augmented_x10", "augmentation", "scaled")
WEIGHTS = tuple(arm for arm in ARMS if arm.split("_x")[0] in FACTORS)
# Question -> cells (world, length, model, arm).
PLAN: dict[str, list[tuple[str, int, str, str]]] = {
    "default": _cells(_THREE, (30, 10), ("prm",), ("none", "no_order", *CANDIDATES)),
    "1": [
        *_cells(("trained",), (30,), (*RERANKERS, "dnn"), ("none", "no_order", DEFAULT, "augmentation", "scaled")),
        *_cells(("informed", "display"), (30,), RERANKERS, ("none", "no_order", DEFAULT)),
    ],
    "2": _cells(
        ("trained",), (30,), ("prm",), ("none", "no_order", DEFAULT, "augmentation", "scaled", "p1", "p2", "r_drop")
    ),
    "payoff": _cells(
        ("trained_small", "informed_noisy", "informed_noisier"),
        (30,),
        ("prm",),
        ("none", "no_order", DEFAULT, "scaled"),
    ),
    "small": _cells(("trained_small",), (30,), RERANKERS, ("none", "no_order", DEFAULT, "scaled")),
    "8": _cells(("trained_poor", "trained", "trained_strong"), (30,), ("prm",), ("none", "no_order", DEFAULT)),
    "dropout": _cells(("trained",), (30,), ("prm",), ("none", "none_dropout", DEFAULT, "augmented_dropout")),
    "defaults": _cells(("trained",), (30,), ("prm",), tuple(arm for arm in ARMS if "_defaults" in arm)),
    "5": _cells(("trained",), (30,), ("prm",), ("none", *WEIGHTS)),
    "7": _cells(("trained",), (30,), ("prm",), ("none", "scaled", "softsort", "neuralsort", "straight_through")),
    "3": _cells(
        ("trained",),
        (30,),
        ("prm",),
        (
            *("none", "scaled", "scaled_random_swap", "scaled_window_shuffle", DEFAULT),
            *(arm for arm in ARMS if arm.startswith(DEFAULT) and arm.endswith("_4")),
        ),
    ),
    "paper_settings": _cells(
        ("trained",), (30,), ("prm",), ("none", *(f"{p}_rate{r:g}" for p in ("none", "paper") for r in PAPER_RATES))
    ),
    "lengths": _cells(_THREE, (10,), RERANKERS, ("none", "no_order", DEFAULT)),
    "ad_informed": _cells(("ad_informed",), (10,), (*RERANKERS, "dnn"), ("none", "no_order", DEFAULT)),
    "ad": _cells(("ad_trained",), (10,), (*RERANKERS, "dnn"), ("none", "no_order", DEFAULT, "scaled")),
}


def trained_as(run: Run) -> Run:
    """Returns the run that trains its model: without order, uncut lists give the same model in every initial order."""
    whole = run.length == WHOLE and WORLDS[run.world][:2] == ("prm_public", LISTS)
    return replace(run, world="trained") if whole and not ARMS[run.arm].order else run


def planned(questions: Iterable[str], seeds: int) -> Iterator[Run]:
    """Yields the runs of the questions, seed by seed within each, without repetitions."""
    done = set()
    for question in questions:
        for seed in range(seeds):
            for cell in PLAN[question]:
                run = trained_as(Run(*cell, seed))
                if not ARMS[run.arm].order and run.model == "dnn":
                    continue
                if run not in done:
                    done.add(run)
                    yield run


# Format of a world's lists -> world and length of the lists on which learning rates are chosen, prefix of their files.
CHOOSING_LISTS = {"prm_public": ("trained", 30, ""), "ad": ("ad_trained", 10, "ad-")}


def learning_rate(world: str, model: str, root: Path, folder: Path) -> float:
    """Finds the rate with the best NDCG@10 on validation lists of the world's format, without principles."""
    chosen_on, length, prefix = CHOOSING_LISTS[WORLDS[world][0]]
    found = {}
    for rate in LEARNING_RATES:
        path = folder / "rates" / f"{prefix}{model}-{rate:g}.json"
        if not path.is_file():
            run = Run(chosen_on, length, model, "none", CHOOSING_SEED)
            result = train_and_measure(run, root, path.parent, rate)
            _write(path, {"learning_rate": rate, "validation": result["validation"], "history": result["history"]})
        found[rate] = json.loads(path.read_text())["validation"]["ndcg@10"]
    return max(found, key=lambda rate: found[rate])


def _write(path: Path, value: Any) -> None:
    from hf_rerank.storage import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


def print_plan(folder: Path, seeds: int) -> None:
    """Prints runs and hours on one core per question; a run's time is the median of finished runs of its kind."""
    from statistics import median

    times: dict[tuple[str, int, bool], list[float]] = {}
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text())
        key = (result["model"], result["length"], ARMS[result["arm"]].principled == "none")
        times.setdefault(key, []).append(result["cpu_seconds"])
    print("question   runs   done   hours left on one core")
    for question in PLAN:
        runs = list(planned([question], seeds))
        left = [run for run in runs if not (folder / f"{run.name}.json").is_file()]
        seconds = 0.0
        for run in left:
            known = times.get((run.model, run.length, ARMS[run.arm].principled == "none"))
            seconds += 1.4 * median(known) if known else 90.0
        print(f"{question:8s}  {len(runs):5d}  {len(runs) - len(left):5d}  {seconds / 3600:8.1f}")


def main() -> None:
    options = _options()
    folder = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if options.plan:
        print_plan(folder, options.seeds)
        return
    import torch

    torch.set_num_threads(1)
    root = options.lists_dir or folder / "lists"
    part, parts = map(int, options.shard.split("/"))
    runs = [run for run in planned(options.questions, options.seeds) if run.model in options.models]
    runs = [run for run in runs if not options.lengths or run.length in options.lengths]
    runs = [run for run in runs if (not options.arms or run.arm in options.arms) and run.world in options.worlds]
    # Each process starts with its own share, then takes runs that the others have left.
    for run in [*runs[part::parts], *runs]:
        path = folder / f"{run.name}.json"
        claim = path.with_suffix(".running")
        if path.is_file() or not _claim(claim):
            continue
        try:
            result = train_and_measure(run, root, folder, learning_rate(run.world, run.model, root, folder))
            _write(path, result)
        finally:
            claim.unlink()
        print(f"{run.name}  {result['cpu_seconds']:.0f} s  {result['test']['expected_clicks']:.4f}", flush=True)


def _claim(path: Path) -> bool:
    """Whether this process may start the run: no live process on this machine is working on it."""
    if path.is_file():
        try:
            os.kill(int(path.read_text()), 0)
            return False
        except (ValueError, ProcessLookupError):  # left by a process that was killed
            path.unlink(missing_ok=True)
    try:
        with path.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--lists-dir", type=Path, help="folder of the simulated lists (default: in the output folder)")
    parser.add_argument("--questions", nargs="+", choices=list(PLAN), default=list(PLAN))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--lengths", nargs="+", type=int, help="only these")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="only these")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--shard", default="0/1", help="K/N: this process is number K of N")
    parser.add_argument("--plan", action="store_true", help="print runs and times, and train nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
