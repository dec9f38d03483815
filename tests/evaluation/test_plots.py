"""Figures: they show the values of the log and the measures, and a file is written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from hf_rerank import InputError
from hf_rerank.evaluation.plots import _draw_obedience, _draw_training, plot_obedience, plot_training
from hf_rerank.training import PlotCallback

# Two training entries and two evaluations, as a trainer writes them, the closing summary, and a later evaluation.
LOG: list[dict[str, Any]] = [
    {
        "step": 10,
        "loss": 0.9,
        "task_loss": 0.7,
        "further_task_loss": 1.4,
        "convergence_loss": 0.002,
        "adversarial_loss": 0.001,
        "cross_loss": 0.004,
        "score_spread": 0.5,
        "collapsed_share": 0.0,
        "grad_norm": 3.0,
    },
    {
        "step": 10,
        "eval_loss": 0.65,
        "eval_ndcg@5": 0.2,
        "eval_ndcg@10": 0.3,
        "eval_p1_item_obedience": 0.4,
        "eval_p2_item_obedience": 0.8,
        "eval_p1_obedience@5": 0.1,
        "eval_p2_obedience@5": 0.6,
        "eval_p1_set_obedience@5": 0.55,
        "eval_score_spread": 0.45,
    },
    {
        "step": 20,
        "loss": 0.8,
        "task_loss": 0.6,
        "further_task_loss": 1.2,
        "convergence_loss": 0.001,
        "adversarial_loss": 0.0005,
        "cross_loss": 0.002,
        "score_spread": 0.7,
        "collapsed_share": 0.0,
        "grad_norm": 2.0,
    },
    {
        "step": 20,
        "eval_loss": 0.6,
        "eval_ndcg@5": 0.25,
        "eval_ndcg@10": 0.35,
        "eval_p1_item_obedience": 0.5,
        "eval_p2_item_obedience": 0.9,
        "eval_p1_obedience@5": 0.2,
        "eval_p2_obedience@5": 0.7,
        "eval_p1_set_obedience@5": 0.65,
        "eval_score_spread": 0.6,
    },
    {"step": 20, "train_runtime": 3.5, "train_loss": 0.85},
    {"step": 20, "eval_loss": 0.1, "eval_p1_item_obedience": 0.99, "eval_score_spread": 9.0, "grad_norm": 99.0},
]
MEASURES = {
    "p1_obedience": 0.25,
    "p2_obedience": 0.5,
    "p1_obedience@5": 0.6,
    "p2_obedience@5": 0.8,
    "p1_set_obedience@5": 0.7,
    "p2_set_obedience@5": 0.9,
    "p1_item_obedience": 0.75,
    "p2_item_obedience": 0.95,
    "p1_kendall_tau": -0.25,
    "p2_kendall_tau": 0.99,
    "fixed_point_rate": 0.625,
    "fixed_point_steps": 1.75,
    "cycle_rate": 0.25,
    "score_spread": 0.8125,
    "collapsed_share": 0.0,
    "obedience_lists": 1234,
    "unknown_share": {"item_id": 0.1},
    "settings": {"no_click": "zero"},
}


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> steps and values of each line of a panel."""
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in axes.lines
    }


def text_of(figure: Figure) -> str:
    """All text in a figure."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from the header of a PNG file."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def count_pixels(path: Path, colour: tuple[int, int, int]) -> int:
    """Number of pixels of exactly this colour."""
    return int((np.rint(imread(path)[..., :3] * 255) == colour).all(-1).sum())


# -------------------------------------------------------------------------------------------------------- the training


def test_training_curves_match_the_log() -> None:
    losses, obedience, spread, norm = _draw_training(LOG).axes
    steps = [10, 20]
    assert lines(losses) == {
        "task": (steps, [0.7, 0.6]),
        "task, evaluation": (steps, [0.65, 0.6]),
        "task, later passes": (steps, [1.4, 1.2]),
        "convergence (P1)": (steps, [0.002, 0.001]),
        "adversarial (P2)": (steps, [0.001, 0.0005]),
        "passes 2 and 3": (steps, [0.004, 0.002]),
        "weighted sum": (steps, [0.9, 0.8]),
    }
    assert lines(obedience) == {
        "P1, items at their rank": (steps, [0.4, 0.5]),
        "P1, same first 5": (steps, [0.1, 0.2]),
        "P2, items at their rank": (steps, [0.8, 0.9]),
        "P2, same first 5": (steps, [0.6, 0.7]),
        "NDCG@10": (steps, [0.3, 0.35]),
    }
    assert lines(spread) == {"training": (steps, [0.5, 0.7]), "evaluation": (steps, [0.45, 0.6])}
    assert lines(norm) == {"gradient norm": (steps, [3.0, 2.0])}


@pytest.mark.slow
def test_panels_have_the_right_scales_and_labels() -> None:
    figure = _draw_training(LOG)
    losses, obedience, spread, norm = figure.axes
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear", "log"]
    low, high = obedience.get_ylim()
    assert low <= 0 < 1 <= high < 1.1
    assert spread.get_ylim()[0] == 0
    for axes in figure.axes:
        assert not axes.spines["top"].get_visible()
        assert not axes.spines["right"].get_visible()
        assert axes.get_ylabel()
    assert spread.get_xlabel() == norm.get_xlabel() == "training step"
    legend = losses.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(lines(losses))
    written = text_of(figure)
    for title in ("Loss terms, before weighting", "Obedience on", "Spread of a list's scores", "Gradient norm"):
        assert written.count(title) == 1


def test_each_principle_has_one_colour_and_no_two_lines_of_a_panel_look_alike() -> None:
    figure = _draw_training(LOG)
    found: dict[str, set[str]] = {"P1": set(), "P2": set()}
    for axes in figure.axes:
        looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
        assert len(set(looks)) == len(looks)
        for line in axes.lines:
            for principle in found:
                if principle in str(line.get_label()):
                    found[principle].add(str(line.get_color()))
    assert found == {"P1": {"#0072B2"}, "P2": {"#D55E00"}}


@pytest.mark.parametrize(
    ("values", "bottom", "top", "ticks"),
    [
        ([0.0567, 0.165], 0.05, 0.2, [0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.2]),
        ([0.9, 0.94], 0.8, 1.0, [0.8, 0.9, 1.0]),
        ([0.5, 0.5], 0.4, 0.6, [0.4, 0.5, 0.6]),
        ([0.15, 4.5], 0.1, 5.0, [0.1, 0.2, 0.5, 1.0, 2.0, 5.0]),
        ([0.0003, 70.0], 0.0002, 80.0, [0.001, 0.01, 0.1, 1.0, 10.0]),
        ([1.0, 1000.0], 0.9, 2000.0, [1.0, 10.0, 100.0, 1000.0]),
    ],
)
def test_a_logarithmic_scale_ends_at_round_numbers(
    values: list[float], bottom: float, top: float, ticks: list[float]
) -> None:
    """Ticks at 1, 2, 3, ... of each decade; at 1, 2, 5 if that gives more than eight; otherwise at powers of ten."""
    log = [{"step": step, "grad_norm": value} for step, value in enumerate(values)]
    norm = _draw_training(log).axes[3]
    assert norm.get_yscale() == "log"
    assert norm.get_ylim() == pytest.approx((bottom, top))
    assert norm.get_yticks().tolist() == pytest.approx(ticks)
    assert [float(label.get_text()) for label in norm.get_yticklabels()] == pytest.approx(ticks)


def test_a_loss_term_of_zero_makes_the_scale_linear() -> None:
    log = [{"step": step, "task_loss": 0.7, "convergence_loss": value} for step, value in ((1, 0.0), (2, 0.1))]
    losses = _draw_training(log).axes[0]
    assert losses.get_yscale() == "linear"
    assert lines(losses)["convergence (P1)"] == ([1, 2], [0.0, 0.1])


def test_the_weighted_sum_is_not_drawn_where_it_equals_the_task_loss() -> None:
    log = [{"step": step, "loss": 0.7, "task_loss": 0.7, "eval_loss": 0.8} for step in (1, 2)]
    assert list(lines(_draw_training(log).axes[0])) == ["task", "task, evaluation"]
    only_loss = [{"step": 1, "loss": 0.7}]
    assert lines(_draw_training(only_loss).axes[0]) == {"weighted sum": ([1], [0.7])}


@pytest.mark.parametrize("broken", [None, math.nan, math.inf, "0.5", True])
def test_values_that_are_not_finite_numbers_leave_a_gap(broken: Any) -> None:
    """``results.json`` has null where a number was not finite."""
    log = [{"step": step, "grad_norm": value} for step, value in ((1, 2.0), (2, broken), (3, 1.0))]
    steps, values = lines(_draw_training(log).axes[3])["gradient norm"]
    assert steps == [1, 2, 3]
    assert values[0] == 2.0
    assert math.isnan(values[1])
    assert values[2] == 1.0


def test_a_panel_without_entries_is_labelled_as_such() -> None:
    figure = _draw_training([{"step": 5, "score_spread": 0.5}])
    assert text_of(figure).count("not in the log") == 3
    assert lines(figure.axes[2]) == {"training": ([5], [0.5])}
    assert figure.axes[2].get_xlim() == (4, 6)


@pytest.mark.slow
def test_collapse_is_reported_at_its_worst_step() -> None:
    shares = {10: 0.0, 20: 0.125, 30: 0.375, 40: 0.25}
    log = [{"step": step, "score_spread": 0.5, "collapsed_share": share} for step, share in shares.items()]
    assert "37.5% of the lists had equal scores at step 30" in text_of(_draw_training(log))
    assert "equal scores" not in text_of(_draw_training(LOG))


def test_a_long_line_has_no_markers() -> None:
    def marker(points: int) -> str:
        log = [{"step": step, "grad_norm": 1.0} for step in range(points)]
        return str(_draw_training(log).axes[3].lines[0].get_marker())

    assert (marker(40), marker(41)) == ("o", "None")


@pytest.mark.parametrize(
    "log",
    [
        [],
        [{"loss": 0.5}],
        [{"step": 3, "learning_rate": 0.1}],
        [{"step": 3, "task_loss": None, "grad_norm": math.nan}],
        [{"step": 3, "train_runtime": 1.0}, {"step": 3, "eval_loss": 0.5}],
        ["not an entry"],
    ],
)
def test_a_log_with_nothing_to_draw_is_rejected(log: list[Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw in the log: expected entries with a step"):
        plot_training(log, tmp_path / "training.png")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ the evaluation


def bars(axes: Axes) -> dict[str, dict[str, float]]:
    """P1 or P2 -> name under the bar -> height; a bar belongs to the nearest tick."""
    names = [label.get_text().split("\n")[0] for label in axes.get_xticklabels()]
    found: dict[str, dict[str, float]] = {}
    for container in axes.containers:
        heights = {}
        for bar in container:
            heights[names[round(bar.get_x() + bar.get_width() / 2)]] = float(bar.get_height())
        found[str(container.get_label())[:2]] = heights
    return found


def test_bars_are_as_high_as_the_measures() -> None:
    figure = _draw_obedience(MEASURES)
    left, right = figure.axes
    assert bars(left) == {
        "P1": {
            "whole list": 0.25,
            "first 5, as order": 0.6,
            "first 5, as set": 0.7,
            "items at their rank": 0.75,
            "Kendall tau": -0.25,
        },
        "P2": {
            "whole list": 0.5,
            "first 5, as order": 0.8,
            "first 5, as set": 0.9,
            "items at their rank": 0.95,
            "Kendall tau": 0.99,
        },
    }
    low, high = left.get_ylim()
    assert low < -0.25
    assert high >= 1
    # 1 - 0.625 - 0.25 = 0.125: neither settled nor in a cycle.
    assert [bar.get_width() for bar in right.patches] == [0.625, 0.25, 0.125]
    written = text_of(figure)
    for text in ("62.5%", "25.0%", "12.5%", "after 1.8 steps", "Score spread 0.812", "1,234 lists", "-0.25", "0.99"):
        assert text in written
    assert "equal scores" not in written


@pytest.mark.parametrize("steps", [None, math.nan])
def test_step_count_is_omitted_if_no_list_reaches_a_fixed_point(steps: float | None) -> None:
    figure = _draw_obedience({**MEASURES, "fixed_point_rate": 0.0, "fixed_point_steps": steps, "cycle_rate": 1.0})
    assert [bar.get_width() for bar in figure.axes[1].patches] == [0, 1, 0]
    assert "steps" not in text_of(figure)


def test_unmeasured_fixed_points_are_labelled_as_such() -> None:
    measures = {name: value for name, value in MEASURES.items() if not name.startswith(("fixed", "cycle"))}
    figure = _draw_obedience(measures)
    assert "not measured" in text_of(figure)
    assert not figure.axes[1].patches


def test_equal_scores_are_reported_next_to_obedience() -> None:
    written = text_of(_draw_obedience({**MEASURES, "collapsed_share": 0.5, "score_spread": 0.0004}))
    assert "Score spread 0.0004" in written
    assert "50.0% of the lists have equal scores" in written


def test_cut_offs_are_drawn_in_ascending_order() -> None:
    more = {f"{name}@{cut}": cut / 100 for cut in (10, 3) for name in ("p1_obedience", "p2_obedience")}
    more |= {f"{name}@{cut}": cut / 100 for cut in (10, 3) for name in ("p1_set_obedience", "p2_set_obedience")}
    left = _draw_obedience({**MEASURES, **more}).axes[0]
    assert [label.get_text().split("\n")[0] for label in left.get_xticklabels()] == [
        "whole list",
        *("first 3, as order", "first 3, as set", "first 5, as order", "first 5, as set"),
        *("first 10, as order", "first 10, as set", "items at their rank", "Kendall tau"),
    ]
    assert bars(left)["P2"]["first 10, as set"] == 0.1


@pytest.mark.parametrize("measures", [{}, {"auc": 0.7}, {"p1_obedience": math.nan, "p2_obedience": None}])
def test_an_evaluation_without_obedience_is_rejected(measures: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no obedience to draw: expected measures such as p1_obedience"):
        plot_obedience(measures, tmp_path / "obedience.png")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- the files


@pytest.mark.slow
def test_written_files_are_png_images_with_the_expected_size_and_colours(tmp_path: Path) -> None:
    """12 by 7.6 and 12.5 by 4.4 inches at 150 dpi; P1's blue and P2's vermillion are in both."""
    training, obedience = tmp_path / "new" / "training.png", tmp_path / "new" / "obedience.png"
    plot_training(LOG, training)
    plot_obedience(MEASURES, str(obedience))
    assert png_size(training) == (1800, 1140)
    assert png_size(obedience) == (1875, 660)
    for path in (training, obedience):
        for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
            assert count_pixels(path, colour) > 100
    assert sorted(path.name for path in training.parent.iterdir()) == ["obedience.png", "training.png"]


@pytest.mark.slow
def test_a_log_read_back_from_json_gives_the_same_figure(tmp_path: Path) -> None:
    plot_training(LOG, tmp_path / "a.png")
    plot_training(json.loads(json.dumps(LOG)), tmp_path / "b.png")
    assert (imread(tmp_path / "a.png") == imread(tmp_path / "b.png")).all()


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    """The file contains only the image: no version, no date, no path."""
    for name in ("a", "b"):
        plot_training(LOG, tmp_path / name / "training.png")
        plot_obedience(MEASURES, tmp_path / name / "obedience.png")
    for figure in ("training.png", "obedience.png"):
        content = (tmp_path / "a" / figure).read_bytes()
        assert (tmp_path / "b" / figure).read_bytes() == content
        place, chunks = 8, []
        while place < len(content):
            (length,) = struct.unpack(">I", content[place : place + 4])
            chunks.append(content[place + 4 : place + 8].decode())
            place += length + 12
        assert set(chunks) == {"IHDR", "pHYs", "IDAT", "IEND"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["savefig", "replace"])
def test_a_failed_write_leaves_the_old_figure(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training.png"
    path.write_bytes(b"old")
    happened = []

    def half(figure: Figure, target: Any, **options: Any) -> None:
        Path(target).write_bytes(b"half")
        fail()

    def fail(*arguments: Any) -> None:
        happened.append(fault)
        raise OSError("No space left on device")

    if fault == "savefig":
        monkeypatch.setattr(Figure, "savefig", half)
    else:
        monkeypatch.setattr("hf_rerank.storage.atomic.os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        plot_training(LOG, path)
    assert happened == [fault]
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("training.png", b"old")]


def test_file_names_must_end_in_png(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.svg: expected a file that ends in \.png"):
        plot_training(LOG, tmp_path / "training.svg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_drawing_touches_no_global_state(tmp_path: Path) -> None:
    """In a fresh Python: matplotlib is imported with the first figure, pyplot and torch never."""
    code = f"""
import sys
from hf_rerank.evaluation import plots
assert "matplotlib" not in sys.modules
plots.plot_training([{{"step": 1, "loss": 0.5}}], {str(tmp_path / "training.png")!r})
import matplotlib
assert not {{"matplotlib.pyplot", "torch", "transformers"}} & set(sys.modules)
assert matplotlib.rcParams["backend"] == "svg"
"""
    environment = {**os.environ, "MPLBACKEND": "svg"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert png_size(tmp_path / "training.png") == (1800, 1140)


@pytest.mark.usefixtures("without_matplotlib")
def test_missing_matplotlib_is_reported_with_the_install_command(tmp_path: Path) -> None:
    message = r"^figures need matplotlib: pip install hf-rerank\[plots\]$"
    with pytest.raises(InputError, match=message):
        plot_training(LOG, tmp_path / "training.png")
    with pytest.raises(InputError, match=message):
        plot_obedience(MEASURES, tmp_path / "obedience.png")
    with pytest.raises(InputError, match=message):
        PlotCallback()


# -------------------------------------------------------------------------------------------------------- the callback


def draw(callback: PlotCallback, event: str, log: list[Any], output_dir: Path, main: bool = True) -> None:
    state = SimpleNamespace(log_history=log, is_world_process_zero=main)
    getattr(callback, event)(SimpleNamespace(output_dir=str(output_dir)), state, None, metrics={})


@pytest.mark.slow
@pytest.mark.parametrize("event", ["on_evaluate", "on_train_end"])
def test_callback_draws_into_the_output_folder(event: str, tmp_path: Path) -> None:
    callback = PlotCallback()
    assert callback.drawn is None
    draw(callback, event, LOG, tmp_path)
    assert callback.drawn == tmp_path / "plots" / "training.png"
    assert png_size(callback.drawn) == (1800, 1140)


@pytest.mark.slow
def test_callback_draws_into_a_given_folder(tmp_path: Path) -> None:
    callback = PlotCallback(tmp_path / "here")
    draw(callback, "on_evaluate", LOG, tmp_path / "run")
    assert callback.drawn == tmp_path / "here" / "training.png"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.slow
def test_callback_redraws_when_the_log_grows(tmp_path: Path) -> None:
    callback = PlotCallback()
    draw(callback, "on_evaluate", LOG[:2], tmp_path)
    assert callback.drawn is not None
    first = callback.drawn.read_bytes()
    draw(callback, "on_evaluate", LOG[:4], tmp_path)
    assert callback.drawn.read_bytes() != first


def test_only_the_main_process_draws(tmp_path: Path) -> None:
    callback = PlotCallback()
    draw(callback, "on_train_end", LOG, tmp_path, main=False)
    assert callback.drawn is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_callback_tolerates_a_log_with_nothing_to_draw_yet(tmp_path: Path) -> None:
    callback = PlotCallback()
    draw(callback, "on_evaluate", [], tmp_path)
    assert callback.drawn is None
    assert list(tmp_path.iterdir()) == []
    draw(callback, "on_evaluate", LOG, tmp_path)
    assert callback.drawn is not None


def test_callback_warns_if_the_figure_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file where the folder should be")
    callback = PlotCallback()
    with pytest.warns(UserWarning, match=r"plots/training\.png could not be written"):
        draw(callback, "on_evaluate", LOG, tmp_path)
    assert callback.drawn is None
