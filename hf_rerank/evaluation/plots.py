"""Figures of a training and of an evaluation, from plain numbers: a trainer's log, the measures of ``evaluate``.

matplotlib (the extra ``plots``) is imported when a figure is drawn; pyplot never is, so no backend changes and no
window opens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rerank.errors import InputError
from hf_rerank.storage import name_failures, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, safe for colour-blind readers. P1 and P2 keep their colour in every panel.
P1, P2 = "#0072B2", "#D55E00"
GREEN, PURPLE, ORANGE = "#009E73", "#CC79A7", "#E69F00"
DARK, GREY, PALE = "#333333", "#8C8C8C", "#E6E6E6"
DOTS_PER_INCH = 150
# Lines with at most this many points get markers; on longer lines these would hide the line.
POINTS_SHOWN = 40
TICKS = 8

# Key of the log -> label and style of its line.
LOSS_LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "task_loss": ("task", {"color": GREEN}),
    "eval_loss": ("task, evaluation", {"color": DARK, "linestyle": "--"}),
    "further_task_loss": ("task, later passes", {"color": ORANGE}),
    "convergence_loss": ("convergence (P1)", {"color": P1}),
    "adversarial_loss": ("adversarial (P2)", {"color": P2}),
    "cross_loss": ("passes 2 and 3", {"color": PURPLE}),
    "loss": ("weighted sum", {"color": GREY}),
}
SPREAD_LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "score_spread": ("training", {"color": GREEN}),
    "eval_score_spread": ("evaluation", {"color": DARK, "linestyle": "--"}),
}
NORM_LINES: dict[str, tuple[str, dict[str, Any]]] = {"grad_norm": ("gradient norm", {"color": GREEN})}


def plot_training(log: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Draws the curves of a training: loss terms, obedience, score spread, gradient norm.

    Args:
        log: The log history of a trainer: dicts with ``step``. Evaluations after the training are left out;
            non-finite values leave a gap.
        path: The PNG file to write. It is written completely or not at all.

    Raises:
        InputError: Nothing in the log can be drawn, matplotlib is missing, or the path does not end in ``.png``.
    """
    _write(_draw_training(log), path)


def plot_obedience(measures: Mapping[str, Any], path: str | Path) -> None:
    """Draws how far a model obeys both principles, and whether its rankings settle.

    Args:
        measures: The result of ``hf_rerank.evaluation.evaluate``.
        path: The PNG file to write. It is written completely or not at all.

    Raises:
        InputError: There is no measure of obedience, matplotlib is missing, or the path does not end in ``.png``.
    """
    _write(_draw_obedience(measures), path)


def require_matplotlib() -> None:
    """Raises an InputError if matplotlib is missing, so that long work is not started in vain."""
    _new_figure(1, 1)


def _new_figure(width: float, height: float) -> Figure:
    """Makes an empty figure; width and height in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures need matplotlib: pip install hf-rerank[plots]") from error
    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    if path.suffix != ".png":
        raise InputError(f"{path}: expected a file that ends in .png")
    with write_atomically(path) as temporary, name_failures(path):
        # The version of matplotlib is left out, so that the same numbers give the same bytes.
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


# -------------------------------------------------------------------------------------------------------- the training


def _draw_training(log: Iterable[Mapping[str, Any]]) -> Figure:
    entries = _select_entries(log)
    obedience = _obedience_lines(entries)
    lines = {name: _extract_line(entries, name) for name in (*LOSS_LINES, *obedience, *SPREAD_LINES, *NORM_LINES)}
    if not any(steps for steps, _ in lines.values()):
        raise InputError(
            "there is nothing to draw in the log: expected entries with a step and a loss, an obedience, a score "
            "spread or a gradient norm"
        )
    figure = _new_figure(12, 7.6)
    axes = figure.subplots(2, 2, sharex=True)
    for panel in axes.flat:
        panel.xaxis.set_major_locator(_make_integer_locator())
        panel.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")

    terms = [name for name in LOSS_LINES if name.endswith("_loss") and lines[name][0]]
    # Without other terms the sum equals the task loss, and its line would only hide that of the loss.
    shown = terms if set(terms) <= {"task_loss", "eval_loss"} and "task_loss" in terms else LOSS_LINES
    losses = {name: LOSS_LINES[name] for name in shown}
    _draw_panel(axes[0, 0], "Loss terms, before weighting", "loss", losses, lines, logarithmic=True)

    _draw_panel(axes[0, 1], "Obedience on the evaluation lists", "share (1: nothing changes)", obedience, lines)
    axes[0, 1].set_ylim(-0.02, 1.02)

    _draw_panel(axes[1, 0], "Spread of a list's scores", "standard deviation (logits)", SPREAD_LINES, lines)
    highest = max((value for name in SPREAD_LINES for value in lines[name][1] if not math.isnan(value)), default=0.0)
    axes[1, 0].set_ylim(0, 1.08 * highest or 1)
    _note_collapse(axes[1, 0], entries)

    _draw_panel(axes[1, 1], "Gradient norm, before clipping", "Euclidean norm", NORM_LINES, lines, logarithmic=True)
    for panel in axes[1]:
        panel.set_xlabel("training step")
    steps = {step for line in lines.values() for step in line[0]}
    if len(steps) == 1:
        axes[0, 0].set_xlim(min(steps) - 1, max(steps) + 1)
    return figure


def _select_entries(log: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Selects the entries with a step, up to the trainer's final summary."""
    found: list[Mapping[str, Any]] = []
    for entry in log:
        if not isinstance(entry, Mapping):
            continue
        if "train_runtime" in entry:
            break
        if math.isfinite(_read_number(entry.get("step"))):
            found.append(entry)
    return found


def _extract_line(entries: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Extracts steps and values of one key, NaN if a value is not finite; empty if none is finite."""
    points = [(_read_number(entry["step"]), _read_number(entry[name])) for entry in entries if name in entry]
    if all(math.isnan(value) for _, value in points):
        return [], []
    return [step for step, _ in points], [value for _, value in points]


def _read_number(value: Any) -> float:
    """Returns a finite number unchanged, anything else as NaN (null in JSON)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    return float(value)


def _obedience_lines(entries: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Chooses the lines of obedience (by item, at each cut-off of the log), and NDCG to show its cost."""
    names = {name for entry in entries for name in entry}
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for principle, colour in (("p1", P1), ("p2", P2)):
        found[f"eval_{principle}_item_obedience"] = (f"{principle.upper()}, items at their rank", {"color": colour})
        for cut, style in zip(_find_cuts(names, f"eval_{principle}_obedience@"), ("--", ":", "-."), strict=False):
            label = f"{principle.upper()}, same first {cut}"
            found[f"eval_{principle}_obedience@{cut}"] = (label, {"color": colour, "linestyle": style})
    cuts = _find_cuts(names, "eval_ndcg@")
    if cuts:
        cut = 10 if 10 in cuts else cuts[0]
        found[f"eval_ndcg@{cut}"] = (f"NDCG@{cut}", {"color": GREY})
    return found


def _find_cuts(names: Iterable[str], prefix: str) -> list[int]:
    """Finds the numbers that follow a prefix in some name, sorted."""
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(re.escape(prefix) + r"(\d+)", name)))


def _draw_panel(
    axes: Axes,
    title: str,
    unit: str,
    labels: Mapping[str, tuple[str, dict[str, Any]]],
    lines: Mapping[str, tuple[list[float], list[float]]],
    *,
    logarithmic: bool = False,
) -> None:
    """Draws the lines that have points; ``logarithmic`` takes effect only if every value is positive."""
    _style_axes(axes, title)
    axes.set_ylabel(unit)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    for name, (label, style) in labels.items():
        steps, values = lines[name]
        if steps:
            few = {"marker": "o", "markersize": 3.5, "linewidth": 1.6} if len(steps) <= POINTS_SHOWN else {}
            axes.plot(steps, values, label=label, **{"linewidth": 1.0, **few, **style})
    drawn = [value for name in labels for value in lines[name][1] if not math.isnan(value)]
    if not drawn:
        _write_note(axes, "not in the log")
        return
    if logarithmic and min(drawn) > 0:
        _set_log_scale(axes, min(drawn), max(drawn))
    if len(axes.lines) > 1:
        _add_legend(axes, title)


def _set_log_scale(axes: Axes, lowest: float, highest: float) -> None:
    """Sets a logarithmic scale between round numbers, with a few ticks at round numbers."""
    decades = range(math.floor(math.log10(lowest)) - 1, math.ceil(math.log10(highest)) + 2)
    round_numbers = {(factor, decade): factor * 10.0**decade for decade in decades for factor in range(1, 10)}
    bottom = max(number for number in round_numbers.values() if number < lowest)
    top = min(number for number in round_numbers.values() if number > highest)
    ticks: list[float] = []
    for factors in (range(1, 10), (1, 2, 5), (1,)):
        ticks = [n for (factor, _), n in round_numbers.items() if factor in factors and bottom <= n <= top]
        if len(ticks) <= TICKS:
            break
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.set_yticks(ticks, [f"{number:g}" for number in ticks])
    axes.set_yticks([], minor=True)


def _add_legend(axes: Axes, title: str) -> None:
    """Adds a legend above the panel, under the title."""
    axes.set_title("", loc="left")
    legend = axes.legend(
        title=title,
        alignment="left",
        title_fontproperties={"size": 11, "weight": "bold"},
        loc="lower left",
        bbox_to_anchor=(0.0, 1.02),
        borderaxespad=0.0,
        borderpad=0.0,
        ncols=3,
        frameon=False,
        fontsize=9,
        columnspacing=1.6,
        handlelength=1.8,
    )
    legend.get_title().set_color(DARK)


def _write_note(axes: Axes, words: str) -> None:
    """Writes a note in a panel that has nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_yticks([])


def _style_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=DARK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def _make_integer_locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True, min_n_ticks=1)


def _note_collapse(axes: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    """Notes the step at which most lists had equal scores, if any did."""
    steps, shares = _extract_line(entries, "collapsed_share")
    share, step = max(((share, step) for share, step in zip(shares, steps, strict=True) if share > 0), default=(0, 0))
    if share:
        note = f"{share:.1%} of the lists had equal scores at step {step:,.0f}"
        axes.text(0.02, 0.04, note, transform=axes.transAxes, color=DARK, fontsize=9)


# ------------------------------------------------------------------------------------------------------ the evaluation


def _draw_obedience(measures: Mapping[str, Any]) -> Figure:
    rows = {"whole list\n(share of lists)": "obedience"}
    for cut in _find_cuts(measures, "p1_obedience@"):
        rows[f"first {cut}, as order\n(share of lists)"] = f"obedience@{cut}"
        rows[f"first {cut}, as set\n(share of lists)"] = f"set_obedience@{cut}"
    rows |= {"items at their rank\n(share of items)": "item_obedience", "Kendall tau\n(-1 to 1)": "kendall_tau"}
    rows = {
        label: name
        for label, name in rows.items()
        if not all(math.isnan(_read_number(measures.get(f"{principle}_{name}"))) for principle in ("p1", "p2"))
    }
    if not rows:
        raise InputError(
            "there is no obedience to draw: expected measures such as p1_obedience, of lists with two items or more"
        )
    figure = _new_figure(3.5 + 1.8 * max(len(rows), 5), 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(2 * max(len(rows), 5), 5))
    title = "How far the ranking stays as it was"
    _style_axes(left, title)
    lowest = 0.0
    for principle, label, colour, shift in (
        ("p1", "P1: shown the model's own order", P1, -0.19),
        ("p2", "P2: two adjacent items swapped", P2, 0.19),
    ):
        values = [_read_number(measures.get(f"{principle}_{name}")) for name in rows.values()]
        drawn = left.bar([place + shift for place in range(len(rows))], values, width=0.36, color=colour, label=label)
        texts = ["" if math.isnan(value) else f"{value:.2f}" for value in values]
        left.bar_label(drawn, texts, padding=2, fontsize=9, color=DARK)
        lowest = min([lowest, *(value for value in values if not math.isnan(value))])
    left.set_xticks(range(len(rows)), list(rows))
    left.set_xlim(-0.6, max(len(rows), 5) - 0.4)
    left.tick_params(axis="x", length=0)
    # Kendall's tau may be negative; the space below the lowest bar is for its label.
    left.set_ylim(lowest - 0.1 if lowest < 0 else 0.0, 1.08)
    left.set_yticks([tick for tick in (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0) if tick >= lowest])
    left.axhline(0, color=DARK, linewidth=0.8)
    left.set_ylabel("obedience (1: nothing changes)")
    _add_legend(left, title)
    _draw_fixed_points(right, measures)
    figure.suptitle(_describe_subject(measures), x=0.01, ha="left", fontsize=11, color=DARK)
    return figure


def _describe_subject(measures: Mapping[str, Any]) -> str:
    """Describes the lists of the bars, and the score spread that they must be read with."""
    spread, collapsed, lists = (
        _read_number(measures.get(name)) for name in ("score_spread", "collapsed_share", "obedience_lists")
    )
    parts = [] if math.isnan(spread) else [f"Score spread {spread:.3g} (standard deviation of a list's logits)"]
    if collapsed > 0:
        parts.append(f"{collapsed:.1%} of the lists have equal scores")
    if not math.isnan(lists):
        parts.append(f"{lists:,.0f} lists")
    return "; ".join(parts)


def _draw_fixed_points(axes: Axes, measures: Mapping[str, Any]) -> None:
    """Draws the fractions of lists whose ranking settles, cycles, or does neither within the steps."""
    _style_axes(axes, "Fed its own ranking repeatedly")
    settled, cycling = (_read_number(measures.get(name)) for name in ("fixed_point_rate", "cycle_rate"))
    if math.isnan(settled) or math.isnan(cycling):
        _write_note(axes, "not measured")
        axes.set_xticks([])
        axes.spines[["left", "bottom"]].set_visible(False)
        return
    steps = _read_number(measures.get("fixed_point_steps"))
    reached = "" if math.isnan(steps) else f"\n(after {steps:.1f} steps, mean)"
    # The three shares add up to 1, except for rounding.
    shares = {f"settles{reached}": settled, "cycles": cycling, "still moves": max(0.0, 1 - settled - cycling)}
    drawn = axes.barh(list(shares), list(shares.values()), height=0.55, color=[GREEN, ORANGE, GREY])
    axes.bar_label(drawn, [f"{share:.1%}" for share in shares.values()], padding=3, fontsize=9, color=DARK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of lists")
