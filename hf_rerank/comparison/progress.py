"""Progress of a comparison: one line per finished run, with the remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm


def print_line(line: str) -> None:
    """Prints a line and flushes, so that it also appears at once when redirected."""
    print(line, flush=True)


def remaining_seconds(taken: Mapping[str, Sequence[float]], left: Sequence[str]) -> float | None:
    """Estimates the time that the remaining runs take.

    Args:
        taken: Arm -> seconds of each of its runs so far.
        left: The arm of each remaining run. For an arm without finished runs, the mean of all runs is used.

    Returns:
        Seconds; None before the first run.
    """
    every = [seconds for of_arm in taken.values() for seconds in of_arm]
    if not every:
        return None
    usual = sum(every) / len(every)
    return sum(sum(taken[arm]) / len(taken[arm]) if taken.get(arm) else usual for arm in left)


def format_duration(seconds: float) -> str:
    """Formats seconds as ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class Progress:
    """Prints the progress of a comparison.

    Args:
        runs: The arm of each run, finished or not.
        say: Prints a line.
    """

    def __init__(self, runs: Sequence[str], say: Callable[[str], None]) -> None:
        self.total, self.say = len(runs), say
        self.left, self.taken = list(runs), dict[str, list[float]]()
        self.started = 0.0
        self.bar: tqdm | None = None

    def skip(self, arm: str) -> None:
        """Skips a run that is already finished."""
        self.left.remove(arm)

    def begin(self, name: str) -> None:
        """Begins a run."""
        self.started = time.monotonic()
        self.bar = tqdm(total=100, desc=name, unit="%", leave=False, disable=None, delay=1)

    def step(self, fraction: float) -> None:
        """Updates the bar with the fraction of the run's training that is done."""
        if self.bar is not None:
            self.bar.update(int(100 * fraction) - self.bar.n)

    def finish(self, arm: str, seed: int, measure: str) -> None:
        """Finishes the run and prints its line.

        Args:
            arm: Name of the arm.
            seed: Seed of the run.
            measure: Its result on validation, formatted.
        """
        if self.bar is not None:
            self.bar.close()
        seconds = time.monotonic() - self.started
        self.taken.setdefault(arm, []).append(seconds)
        self.left.remove(arm)
        remaining = remaining_seconds(self.taken, self.left)
        more = f", about {format_duration(remaining)} left" if remaining else ""
        done = f"[{self.total - len(self.left)}/{self.total}]"
        self.say(f"{done} {arm}, seed {seed}: {measure}, {format_duration(seconds)}{more}")
