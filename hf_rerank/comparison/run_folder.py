"""The folder of a comparison: its configuration, and one JSON file per finished run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_rerank.comparison.arms import Arm, Plan
from hf_rerank.errors import InputError
from hf_rerank.evaluation.results import data_identity
from hf_rerank.schema import ListSchema
from hf_rerank.storage import hold_lock, read_json, to_json_values, write_json

CONFIGURATION, RUNS, WORK = "compare.json", "runs", "work"
FORMAT_VERSION = 1


def describe(splits: Mapping[str, Any], schema: ListSchema, plan: Plan) -> dict[str, Any]:
    """Describes everything that the result of a run depends on, except model and seed, which may be added later."""
    return to_json_values(
        {
            "format_version": FORMAT_VERSION,
            "lists": {split: data_identity(splits[split], schema) for split in ("train", "validation", "test")},
            "schema": schema.to_dict(),
            "config options": dict(plan.config),
            "training options": dict(plan.training),
            "principles": plan.preset,
        }
    )


class RunFolder:
    """Finished runs on disk.

    Args:
        path: The folder; created if missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextmanager
    def lock(self, configuration: dict[str, Any], plan: Plan) -> Iterator[RunFolder]:
        """Locks the folder for this process.

        Raises:
            InputError: Another process is using it, or it contains a different comparison or other files.
        """
        if self.path.is_file():
            raise InputError(f"{self.path} is a file: expected a folder for the comparison, existing or not")

        def describe_busy(process: str) -> str:
            return f"{process} is running a comparison in {self.path}: wait until it ends, or give another folder"

        with hold_lock(self.path / ".compare.lock", describe_busy):
            self._claim(configuration)
            self._claim_own_models(plan)
            yield self

    def _claim(self, configuration: dict[str, Any]) -> None:
        path = self.path / CONFIGURATION
        if not path.is_file():
            others = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if others:
                raise InputError(
                    f"{self.path} contains {', '.join(others[:3])} and no comparison: give a new or an empty folder"
                )
            write_json(path, configuration)
            return
        found = read_json(path)
        different = [name for name in configuration if found.get(name) != configuration[name]]
        if different:
            name = different[0]
            raise InputError(
                f"{self.path} contains a comparison with other {', '.join(different)} ({name}: "
                f"{_shorten(found.get(name))} there, {_shorten(configuration[name])} now), whose runs cannot be "
                "compared with new ones: give another folder, or the same options"
            )

    def _claim_own_models(self, plan: Plan) -> None:
        path = self.path / "own_models.json"
        known = read_json(path) if path.is_file() else {}
        for model in plan.models:
            if model.source is None:
                continue
            digest = hashlib.sha256(model.source.encode()).hexdigest()
            if known.setdefault(model.name, digest) != digest:
                raise InputError(
                    f"the module of {model.name} has changed since its runs in {self.path}: give another folder, or "
                    f"remove {path} and {self.path / RUNS}/{model.name}-*"
                )
        if known:
            write_json(path, known)

    def run_path(self, arm: Arm, seed: int) -> Path:
        """Returns the file of a run."""
        return self.path / RUNS / f"{arm.file_name(seed)}.json"

    def work_path(self, arm: Arm, seed: int) -> Path:
        """Returns the folder of a run's checkpoints during training."""
        return self.path / WORK / arm.file_name(seed)

    def read_result(self, arm: Arm, seed: int) -> dict[str, Any] | None:
        """Reads a finished run; None if it is not finished."""
        path = self.run_path(arm, seed)
        return read_json(path, "remove it to repeat the run") if path.is_file() else None

    def save(self, arm: Arm, seed: int, result: dict[str, Any]) -> None:
        """Writes a finished run, completely or not at all."""
        write_json(self.run_path(arm, seed), result)


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
