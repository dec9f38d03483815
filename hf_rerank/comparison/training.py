"""One run: an arm trained with one seed, selected on the validation lists and evaluated once on the test lists."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_rerank.comparison.arms import TREES, WITH, WITHOUT, Arm, Plan
from hf_rerank.comparison.measuring import CUT, Measured, measure_latency_ms, measure_model, measure_scores
from hf_rerank.comparison.random_order import COLUMN, add_random_order
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import ListSchema
from hf_rerank.storage import remove

SPLITS = ("train", "validation", "test")


class ArmRunner:
    """Trains and measures the arms of a comparison, which share lists and processor.

    Args:
        splits: ``train``, ``validation`` and ``test``, ``datasets`` Datasets.
        schema: Schema of the lists.
        plan: The models and options to train.
    """

    def __init__(self, splits: Mapping[str, Any], schema: ListSchema, plan: Plan) -> None:
        self.splits, self.schema, self.plan = splits, schema, plan

    @cached_property
    def processor(self) -> ListProcessor:
        """Fitted on the training lists."""
        return ListProcessor.from_lists(self.splits["train"], schema=self.schema)

    @cached_property
    def _shuffled_lists(self) -> tuple[dict[str, Any], ListProcessor]:
        """The splits with a random order in place of the given one, and their processor."""
        lists = {
            split: add_random_order(self.splits[split], self.schema, number) for number, split in enumerate(SPLITS)
        }
        schema = self.schema.replace(position=COLUMN)
        return lists, ListProcessor.from_lists(lists["train"], schema=schema)

    def evaluation_options(self, folder: Path) -> dict[str, Any]:
        """Returns the options of the metrics, as in the training: cut-offs, gain and which labels are clicks."""
        arguments = self._make_arguments(Arm("", WITHOUT), 0, folder)
        choices = {name: getattr(arguments, name) for name in ("no_click", "gain", "click_above")}
        return {"ks": sorted({*arguments.metric_ks, CUT}), **choices}

    def run(self, arm: Arm, seed: int, folder: Path, on_step: Callable[[float], None]) -> dict[str, Any]:
        """Trains and measures one arm.

        Args:
            arm: The arm to train.
            seed: Seed of the training.
            folder: Folder for checkpoints, from which a killed run resumes; removed at the end.
            on_step: Called with the fraction of the training that is done.

        Returns:
            JSON values; ``per_list`` is the primary measure of each test list.
        """
        run = self._run_trees if arm.model == TREES else self._run_model
        result = run(arm, seed, folder, on_step)
        remove(folder)
        return {"model": arm.model, "arm": arm.kind, "seed": seed, **result}

    def _run_trees(self, arm: Arm, seed: int, folder: Path, on_step: Callable[[float], None]) -> dict[str, Any]:
        from hf_rerank.initial_rankers.boosting import encode
        from hf_rerank.initial_rankers.tree_learner import TreeLearner
        from hf_rerank.validation import Lists

        started = time.monotonic()
        learner = TreeLearner(
            self.processor, self.splits["train"], with_position=arm.kind == WITH, seed=seed, sampling_seed=seed
        )
        encoded = {split: encode(self.processor, self.splits[split]) for split in ("validation", "test")}
        options = self.evaluation_options(folder)
        trees, chosen = learner.choose(encoded["validation"], gain=options["gain"])
        seconds = time.monotonic() - started
        measured = {
            split: measure_scores(
                trees.scores(ragged, self.processor.schema), self.processor, self.splits[split], **options
            )
            for split, ragged in encoded.items()
        }

        def rank(row: dict[str, Any]) -> Any:
            ragged, _ = self.processor.encode(Lists.from_rows([row], self.processor.schema))
            return trees.scores(ragged, self.processor.schema)

        milliseconds = measure_latency_ms(rank, self.splits["test"], self.schema.label)
        return {**_collect_outcome(measured, seconds, milliseconds), "chosen": chosen}

    def _run_model(self, arm: Arm, seed: int, folder: Path, on_step: Callable[[float], None]) -> dict[str, Any]:
        from transformers import PrinterCallback, TrainerCallback, set_seed

        from hf_rerank.inference.reranker import Reranker
        from hf_rerank.training import RerankTrainer
        from hf_rerank.training.checkpoints import find_newest_checkpoint
        from hf_rerank.training.starting_point import calibrate_for_training

        class Progress(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                on_step(state.global_step / max(1, state.max_steps))

        model = self.plan.model(arm.model)
        splits, processor, shuffled = self.splits, self.processor, False
        if arm.kind == WITHOUT and not model.can_ignore_order:
            (splits, processor), shuffled = self._shuffled_lists, True
        arguments = self._make_arguments(arm, seed, folder)
        set_seed(seed)
        config = model.config_class.for_schema(processor.schema, **self.plan.config_options(arm))
        calibrate_for_training(config, processor, splits["train"], arguments)
        trainer = RerankTrainer(
            model.model_class(config),
            arguments,
            splits["train"],
            splits["validation"],
            processor,
            callbacks=[Progress()],
        )
        trainer.remove_callback(PrinterCallback)
        resumed = folder.is_dir() and find_newest_checkpoint(folder) is not None
        started = time.monotonic()
        trainer.train(resume_from_checkpoint="auto")
        seconds = time.monotonic() - started
        choices = self.evaluation_options(folder)
        measured = {
            split: measure_model(trainer.model, processor, splits[split], **choices)
            for split in ("validation", "test")
        }
        if shuffled:  # its order is a random column that re-ranking does not change, so obedience says nothing
            for found in measured.values():
                for name in [name for name in found.measures if name.startswith(("p1_", "p2_"))]:
                    del found.measures[name]
        reranker = Reranker(processor, trainer.model)
        milliseconds = measure_latency_ms(lambda row: reranker.rerank([row]), splits["test"], self.schema.label)
        return {
            # Only the last part of an interrupted run was timed.
            **_collect_outcome(measured, None if resumed else seconds, milliseconds),
            "parameters": sum(weight.numel() for weight in trainer.model.parameters()),
            "steps": trainer.state.global_step,
            "random_order": shuffled,
        }

    def _make_arguments(self, arm: Arm, seed: int, folder: Path) -> Any:
        from hf_rerank.training import RerankTrainingArguments

        options = self.plan.training_options(arm)
        return RerankTrainingArguments(str(folder), seed=seed, disable_tqdm=True, **options)


def _collect_outcome(measured: Mapping[str, Measured], seconds: float | None, milliseconds: float) -> dict[str, Any]:
    return {
        **{split: found.measures for split, found in measured.items()},
        "per_list": measured["test"].per_list.tolist(),
        "training_seconds": seconds,
        "milliseconds_per_list": milliseconds,
    }
