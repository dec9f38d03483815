"""The benchmarks run, make the documented comparisons and write the documented files. No time is checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from run_scripts import load_script

RunScript = Callable[..., str]
SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmarks" / "principled_cost.py"


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    return load_script(SCRIPT, monkeypatch)


@pytest.mark.slow
def test_a_tiny_benchmark_run_writes_every_row(
    tmp_path: Path, cost: ModuleType, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak memory needs separate processes and has its own test: here it is replaced by fixed numbers."""
    measured = mock.create_autospec(cost.peak_memory, side_effect=lambda *_: 10 * measured.call_count)
    monkeypatch.setattr(cost, "peak_memory", measured)
    small = ["--models", "dnn", "--batch-sizes", 4, "--repeats", 1, "--device", "cpu", "--fractions", 0.5]
    printed = run_script(SCRIPT, "--output-dir", tmp_path / "results", "--presets", "scaled", *small)
    results = json.loads((tmp_path / "results" / "principled_cost.json").read_text())
    names = ["none", "naive", "scaled, fraction 0.5"]
    assert [(row["model"], row["batch_size"], row["setting"]) for row in results["rows"]] == [
        ("dnn", 4, name) for name in names
    ]
    assert [row["peak_memory_mib"] for row in results["rows"]] == [10, 20, 30]
    settings = [cost.Setting("none"), cost.Setting("naive"), cost.Setting("scaled", 0.5)]
    assert measured.mock_calls == [mock.call("dnn", 4, setting, "cpu", 1) for setting in settings]
    for row in results["rows"]:
        assert len(row["step_ms_rounds"]) == 1
        numbers = [value for name, value in row.items() if name.startswith(("step_ms", "ratio", "peak"))]
        assert len(numbers) == 7
        assert all(number > 0 for value in numbers for number in (value if isinstance(value, list) else [value]))
    assert results["threads"] == 1
    assert results["machine"]["cpu"]
    assert results["machine"]["versions"]["torch"] == metadata.version("torch")
    text = (tmp_path / "results" / "principled_cost.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| dnn")]
    assert [line.split(" | ")[2] for line in lines] == names
    assert text.strip() == printed.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "prn"], "unknown re-ranker 'prn': expected one of"),
        (["--presets", "naive"], "principled is 'naive': expected one of"),
        (["--fractions", "1.5"], "fraction is 1.5: expected a number"),
        (["--repeats", "0"], "argument --repeats: invalid count value: '0'"),
    ],
)
def test_wrong_options_give_a_one_line_error(
    arguments: list[str],
    message: str,
    cost: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output-dir", str(tmp_path / "results"), *arguments])
    with pytest.raises(SystemExit) as ended:
        cost.main()
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("usage: ", " "))]
    assert len(lines) == 1
    assert lines[0].startswith(f"principled_cost.py: error: {message}")
    assert not (tmp_path / "results").exists()


def test_naive_setting_has_the_same_loss_and_gradient_as_scaled(cost: ModuleType) -> None:
    """They are equal without dropout: the benchmark compares only how they are computed."""
    batches = cost.made_batches(2, 6, "cpu")
    trainings = [cost.Training("prm", batches, cost.Setting(name), "cpu") for name in ("naive", "scaled", "none")]
    losses, gradients = [], []
    for training in trainings:
        training.model.eval()
        training.steps = 1
        loss = training.loss()
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([weight.grad.flatten() for weight in training.model.parameters()]))
    naive, scaled, none = losses
    torch.testing.assert_close(naive, scaled)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert abs(scaled - none) > 1e-5 * none


@pytest.mark.parametrize("variant", ["float32", "bf16"])
def test_a_step_trains_in_the_precision_of_its_variant(variant: str, cost: ModuleType) -> None:
    training = cost.Training("prm", cost.made_batches(2, 4, "cpu"), cost.Setting("scaled", 0.5, variant), "cpu")
    dtypes = set()
    training.model.scorer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    before = {name: weight.detach().clone() for name, weight in training.model.named_parameters()}
    training.step()
    assert dtypes == {torch.bfloat16 if variant == "bf16" else torch.float32}
    changed = {name for name, weight in training.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == before.keys()
    assert all(weight.dtype == torch.float32 for weight in training.model.parameters())
    assert training.steps == 1


def test_batches_are_reused_in_turn(cost: ModuleType) -> None:
    batches = cost.made_batches(2, 4, "cpu")
    training = cost.Training("dnn", batches, cost.Setting("scaled"), "cpu")
    shown: list[Any] = []
    training.model.register_forward_pre_hook(lambda module, _, given: shown.append(given["labels"]), with_kwargs=True)
    for _ in range(3):
        training.step()
    assert [next(number for number in (0, 1) if labels is batches[number]["labels"]) for labels in shown] == [0, 1, 0]


def test_settings_alternate_within_each_round(cost: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three warm-up steps each; then, in each of two rounds, three steps of one setting and three of the other."""
    order: list[Any] = []

    class Recorder:
        def __init__(self, model: str, batches: list[Any], setting: Any, device: str) -> None:
            assert len({id(batch) for batch in batches}) == len(batches) > 1
            self.setting = setting

        def step(self) -> None:
            order.append(self.setting.name)

    monkeypatch.setattr(cost, "Training", Recorder)
    times = cost.step_times("prm", 4, [cost.Setting("none"), cost.Setting("paper")], 2, "cpu")
    assert order == (["none"] * 3 + ["paper"] * 3) * 3
    assert [len(rounds) for rounds in times.values()] == [2, 2]


def test_ratios_are_computed_within_each_round_and_variant(cost: ModuleType) -> None:
    """Ratios per round: 20/10, 90/30, 50/20 = 2, 3, 2.5; their median is 2.5."""
    none, scaled, slow = cost.Setting("none"), cost.Setting("scaled", 0.5), cost.Setting("scaled", 0.5, "bf16")
    base = cost.Setting("none", variant="bf16")
    times = {none: [10.0, 30.0, 20.0], scaled: [20.0, 90.0, 50.0], base: [1.0, 1.0, 2.0], slow: [4.0, 3.0, 2.0]}
    rows = cost.compared("prm", 128, times, {none: 40.0, scaled: 60.0, base: 10.0, slow: 25.0})
    found = {
        row["setting"]: [
            row[name]
            for name in (
                "step_ms",
                "ratio_to_none",
                "ratio_to_none_min",
                "ratio_to_none_max",
                "peak_memory_ratio_to_none",
            )
        ]
        for row in rows
    }
    assert found == {
        "none": [20, 1, 1, 1, 1],
        "scaled, fraction 0.5": [50, 2.5, 2, 3, 1.5],
        "none, bf16": [1, 1, 1, 1, 1],
        "scaled, fraction 0.5, bf16": [3, 3, 1, 4, 2.5],
    }
    assert "| prm | 128 | scaled, fraction 0.5 | 50.0 | 2.50 [2.00, 3.00] | 60.0 | 1.50 |" in cost.table(rows)


@pytest.mark.slow
def test_peak_memory_covers_only_the_training_steps(cost: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the stored activations, 128 x 30 x (500 + 200 + 80) float32, plus gradients and two moments of
    20,000 x 16 weights: 11.4 + 3.7 MiB. Less than the 400 MiB that the calling process once held."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "")  # set by the script: restored afterwards
    torch.ones(400 * 2**20, dtype=torch.uint8)
    assert 15.1 < cost.peak_memory("dnn", 128, cost.Setting("none"), "cpu", 1) < 200


def test_training_step_script_reports_its_options_and_times(run_script: RunScript) -> None:
    """The given options, and plausible times: no step is faster than the fastest."""
    command = [SCRIPT.with_name("training_step.py"), "--model", "dnn", "--principled", "r_drop"]
    found = json.loads(run_script(*command, "--dropout", 0.3, "--batch-size", 4, "--steps", 3))
    assert (found["model"], found["principled"], found["dropout"], found["batch_size"]) == ("dnn", "r_drop", 0.3, 4)
    assert 0 < found["fastest_ms"] <= found["median_ms"]
    assert found["cpu_ms"] > 0


@pytest.mark.slow
def test_selected_rerankers_and_presets_are_measured(
    tmp_path: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requested rows, with parameter counts that follow from the sizes; on few small batches."""
    script = SCRIPT.with_name("rerankers.py")
    rerankers = load_script(script, monkeypatch)
    for name in ("TRAINING_BATCH", "RANKING_BATCH", "CALLS_OF_ONE", "CALLS_OF_MANY"):
        assert getattr(rerankers, name) > 2
        monkeypatch.setattr(rerankers, name, 2)
    command = [script, "--output-dir", tmp_path, "--rounds", 1]
    run_script(*command, "--models", "dnn", "raise", "--presets", "default", "librerank-ad")
    rows = json.loads((tmp_path / "rerankers.json").read_text())["rows"]
    assert [(row["model"], row["preset"], row["list_length"]) for row in rows] == [
        ("dnn", "default", 30),
        ("dnn", "librerank-ad", 10),
        ("raise", "default", 30),
        ("raise", "librerank-ad", 10),
    ]
    # An item is 5 tables of 16 and 19 numbers, the user 3 tables of 16; layers of 500, 200, 80 and 1; 30 positions.
    width = 8 * 16 + 19
    layers = (width + 1) * 500 + 501 * 200 + 201 * 80 + 81
    assert rows[0]["parameters"] - rows[0]["parameters_of_tables"] == layers + 30 * width
    assert rows[0]["parameters_of_tables"] == 16 * (20_000 + 256 + 8 + 10 + 6 + 10 + 6 + 10)
    for row in rows:
        assert all(row[name] > 0 for name in row if name.endswith(("_per_s", "_ms", "_over_base")))
    lines = (tmp_path / "rerankers.md").read_text().splitlines()
    assert len(lines) == 2 + 4


# ---------------------------------------------------------------------------------------------------------- preparing


@pytest.mark.slow
def test_preparation_is_timed_and_compared_with_eval(tmp_path: Path, run_script: RunScript) -> None:
    """Two text files of some hundred lines; the reported ratios are consistent."""
    small = ["--gigabytes", 0.002, 0.001, "--rounds", 1, "--sample", 20, "--scratch", tmp_path]
    printed = run_script(SCRIPT.with_name("preparing.py"), "--output-dir", tmp_path / "results", *small)
    results = json.loads((tmp_path / "results" / "preparing.json").read_text())
    assert (results["rounds"], results["sample_lines"]) == (1, 20)
    assert results["machine"]["versions"]["polars"] == metadata.version("polars")
    for row, size in zip(results["rows"], (1_000_000, 2_000_000), strict=True):
        assert size <= row["text_bytes"] < size + 10_000  # to the end of a line of about 7,000 bytes
        assert len(row["each_round"]) == 1
        for values in row["each_round"]:
            assert all(number > 0 for name, number in values.items() if name != "load_before")
            ratio = values["eval_ns_a_byte"] * row["text_bytes"] / 1e9 / values["seconds"]
            assert values["times_eval"] == pytest.approx(ratio)
            ratio = values["eval_cpu_ns_a_byte"] * row["text_bytes"] / 1e9 / values["cpu_seconds"]
            assert values["times_eval_per_core"] == pytest.approx(ratio)
            assert values["peak_memory_mib"] > 50  # an interpreter with pyarrow
            assert 0.1 < values["parquet_bytes"] / row["text_bytes"] < 0.5
    text = (tmp_path / "results" / "preparing.md").read_text()
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| 0")] == ["| 0.001", "| 0.002"]
    assert text in printed
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # the scratch folder is removed


@pytest.mark.slow
def test_loading_benchmark_writes_every_row(tmp_path: Path, run_script: RunScript) -> None:
    small = ["--lists", 64, "--ids", 1000, "--rounds", 1, "--batch-sizes", 8, "--steps", 3]
    printed = run_script(SCRIPT.with_name("loading.py"), "--output-dir", tmp_path / "results", *small)
    results = json.loads((tmp_path / "results" / "loading.json").read_text())
    assert len(results["rows"]) == 9
    assert all(row["median"] > 0 and len(row["rounds"]) == 1 for row in results["rows"])
    assert results["environment"]["threads"] == 1
    # 30 items of 5 int32, 19 float32, an int32 position and a float32 label; 3 int32 of the user; an id, and lengths.
    (size,) = (row["median"] for row in results["rows"] if row["unit"] == "bytes a list")
    assert 30 * (5 + 19 + 2) * 4 + 3 * 4 + 22 + 8 < size < 3_400 + 6_000 / 64
    text = (tmp_path / "results" / "loading.md").read_text()
    assert text == printed
    assert text.count("\n| ") == 10


# -------------------------------------------------------------------------------------------------------- preparing Ad


@pytest.mark.slow
def test_ad_preparation_is_measured_by_stage(
    tmp_path: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On random logs of some thousand lines; the behaviour log is truncated."""
    engines = load_script(SCRIPT.with_name("engines.py"), monkeypatch)
    engines.make_logs(tmp_path / "raw", users=50, impressions=2_000)
    engines.make_behaviours(tmp_path / "raw" / "behavior_log.csv", users=50, behaviours=3_000, at_once=1_000)
    command = [SCRIPT.with_name("preparing_ad.py"), "--output-dir", tmp_path / "results", "--scratch", tmp_path]
    printed = run_script(*command, "--raw-dir", tmp_path / "raw", "--behaviours", 3000, 1000, "--rounds", 2)
    results = json.loads((tmp_path / "results" / "preparing_ad.json").read_text())
    assert [row["counts"]["behaviours"] for row in results["rows"]] == [1_000, 3_000]
    for row in results["rows"]:
        stages = row["stages"]
        assert stages["read and cut raw_sample.csv"]["rows"] == row["counts"]["impressions"] == 2_000
        assert stages["read and cut behavior_log.csv"]["rows"] == row["counts"]["behaviours"]
        assert stages["read and write lists"]["rows"] == row["lists"] > 0
        assert len(row["each_round"]) == 2
        assert row["peak_memory_mib"] == max(run["peak_memory_mib"] for run in row["each_round"]) > 50
        assert (
            sum(stage["seconds"] for stage in row["each_round"][0]["stages"].values())
            < row["each_round"][0]["seconds"]
        )
    stages = results["rows"][1]["stages"]
    whole = results["whole_dataset"]
    expected = stages["read and cut raw_sample.csv"]["seconds"] * 26_557_961 / 2_000
    assert whole["read and cut raw_sample.csv"] == pytest.approx(expected)
    expected = stages["read and cut behavior_log.csv"]["seconds"] * 723_268_134 / 3_000
    assert whole["read and cut behavior_log.csv"] == pytest.approx(expected)
    text = (tmp_path / "results" / "preparing_ad.md").read_text()
    assert text.strip() == printed.strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "results"]  # the scratch folder is removed


def test_list_creation_is_extrapolated_by_impressions_and_behaviours(monkeypatch: pytest.MonkeyPatch) -> None:
    """26,557,961 impressions are a hundred times those measured. Time: 10 s for the lists, and 2 s per million
    behaviours; buckets: 1 GB for the impressions, and 20 bytes per behaviour."""
    preparing_ad = load_script(SCRIPT.with_name("preparing_ad.py"), monkeypatch)
    rows = []
    for millions in (10, 20):
        counts = {"impressions": 26_557_961 / 100, "behaviours": millions * 1_000_000}
        stages = {
            "read and cut raw_sample.csv": {"rows": 1, "seconds": 3.0},
            "read and cut behavior_log.csv": {"rows": 1, "seconds": 4.0},
            "read and write lists": {"rows": 1, "seconds": 10 + 2 * millions},
        }
        rows.append({"counts": counts, "stages": stages, "bucket_bytes": 1e9 + 20e6 * millions})
    whole = preparing_ad.extrapolated(rows)
    assert whole["read and cut raw_sample.csv"] == pytest.approx(300)
    assert whole["read and cut behavior_log.csv"] == pytest.approx(4 * 723.268134 / 20)
    assert whole["read and write lists"] == pytest.approx(1_000 + 2 * 723.268134)
    assert whole["bucket_bytes"] == pytest.approx(100e9 + 20 * 723_268_134)
    assert whole["all stages"] == pytest.approx(300 + 4 * 723.268134 / 20 + 1_000 + 2 * 723.268134)


@pytest.mark.slow
def test_polars_and_duckdb_give_the_same_sums(tmp_path: Path, run_script: RunScript) -> None:
    """The script fails if the sums differ."""
    small = ["--behaviours", 3000, "--impressions", 2000, "--users", 50, "--rounds", 1, "--scratch", tmp_path]
    run_script(SCRIPT.with_name("engines.py"), "--output-dir", tmp_path / "results", *small)
    (row,) = json.loads((tmp_path / "results" / "engines.json").read_text())["rows"]
    assert 0 < row["found"]["lists"] <= 50
    assert row["found"]["behaviours"] > 0
    assert row["polars"]["seconds"] > 0
    assert row["duckdb"]["peak_memory_mib"] > 0


# ------------------------------------------------------------------------------------------------------------ serving


@pytest.mark.slow
def test_serving_benchmark_writes_both_runtimes(tmp_path: Path, run_script: RunScript) -> None:
    """All times are positive, and the two runtimes give the same scores."""
    script = SCRIPT.with_name("serving.py")
    printed = run_script(script, "--output-dir", tmp_path / "results", "--models", "dnn", "--calls", 60)
    results = json.loads((tmp_path / "results" / "serving.json").read_text())
    assert (results["threads"], results["calls"]) == (1, 60)
    assert [(row["model"], row["runtime"]) for row in results["rows"]] == [("dnn", "torch"), ("dnn", "onnxruntime")]
    for row in results["rows"]:
        assert all(row[name] > 0 for name in row if name.endswith("_ms"))
        assert row["median_ms"] <= row["p99_ms"]
        assert row["largest_difference"] < 1e-5
    text = (tmp_path / "results" / "serving.md").read_text()
    assert [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| dnn")] == ["torch", "onnxruntime"]
    assert text in printed
