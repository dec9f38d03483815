"""``hf-rerank train``: its help, its options in both spellings, mistakes as one line, training on all lists."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rerank import Reranker, RerankTrainingArguments, cli
from hf_rerank.commands import train as train_command
from hf_rerank.commands.training_options import SHOWN, parse_training_arguments, use_hyphens
from hf_rerank.principled import PRESETS
from hf_rerank.schema import Categorical, Dense, ListSchema
from hf_rerank.training.supported_options import REFUSED

TINY = ["--set", "hidden_size=8", "--set", "intermediate_size=8", "--principled", "none"]
TINY += ["--disable-tqdm", "true", "--use-cpu"]


def write_lists(folder: Path, **counts: int) -> Path:
    schema = ListSchema(items=[Categorical("kind"), Dense("price")], max_list_length=6)
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in counts.items():
        kind, price = draw.integers(0, 4, (count, 5)), draw.random((count, 5))
        columns = {"kind": kind, "price": price, "click": (draw.random((count, 5)) < price).astype(int)}
        table = pa.table({name: values.tolist() for name, values in columns.items()})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    schema.save(folder / "schema.json")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lists(tmp_path_factory.mktemp("prepared") / "lists", train=64, validation=32, test=8)


def train(prepared: Path, run: Path, *options: str) -> int:
    steps = [] if {"--max-steps", "--num-train-epochs"} & set(options) else ["--num-train-epochs", "1"]
    arguments = ["--model", "prm", "--data", str(prepared), "--output-dir", str(run), *steps]
    return cli.main(["train", *arguments, "--per-device-train-batch-size", "16", *TINY, *options])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-rerank: ")]
    return line


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_groups_the_main_options_and_imports_nothing_slow() -> None:
    code = (
        "import sys; from hf_rerank import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    started = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 10
    assert not {"torch", "transformers", "datasets", "pyarrow", "numpy"} & set(ran.stderr.split())
    headings = re.findall(r"^(\w+):$", ran.stdout, re.M)
    assert headings == ["options", "data", "model", "principles", "optimization", "output"]
    shown = set(re.findall(r"--[\w-]+", ran.stdout))
    assert {"--principled", "--num-train-epochs", "--learning-rate", "--per-device-train-batch-size", "--seed"} < shown
    assert {"--resume-from-checkpoint", "--task-loss", "--train-on", "--help-all"} < shown
    assert not [name for name in shown if "_" in name]


def test_defaults_in_the_help_are_those_of_the_arguments() -> None:
    fields = {field.name: field for field in dataclasses.fields(RerankTrainingArguments)}
    for name, _, text in (option for options in SHOWN.values() for option in options):
        default = fields[name.replace("-", "_")].default
        said = re.search(r"\(default: ([\w@.-]+)", text)
        if said and default is not None:
            assert said[1].rstrip(";") == (f"{default:g}" if isinstance(default, float) else str(default)), name
    (text,) = (text for name, _, text in SHOWN["principles"] if name == "principled")
    assert all(re.search(rf"\b{preset}\b", text) for preset in PRESETS)


def test_help_all_has_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--help-all"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    found = re.findall(r"^  --([\w-]+)", printed, re.M)
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(RerankTrainingArguments)}
    refused = {name.replace("_", "-") for name in REFUSED}
    for name in fields - refused - {"local-rank"}:
        assert found.count(name) == 1, name
    assert not refused & set(found)
    assert not re.findall(r"--[\w-]*_[\w-]*", printed)


def test_hyphens_and_underscores_give_the_same_arguments(tmp_path: Path) -> None:
    """Also for values after an equals sign; of an option given twice, the last one counts."""

    def arguments(*words: str) -> dict[str, Any]:
        line = ["train", "--model", "prm", "--data", "lists", "--output-dir", str(tmp_path / "run"), *words]
        known, known.others = cli._parser().parse_known_args(line)
        return parse_training_arguments(known).to_dict()

    hyphens = [
        "--use-cpu",
        "--learning-rate",
        "0.5",
        "--learning-rate=0.25",
        "--adam-beta1",
        "0.5",
        "--metric-ks",
        "3",
    ]
    hyphens += ["10", "--seed", "3", "--principled-kwargs", '{"fraction": 0.5}']
    underscores = [re.sub(r"-(?=\w)(?<!--)", "_", word) if word.startswith("--") else word for word in hyphens]
    assert underscores[1] == "--learning_rate"
    found = arguments(*hyphens)
    assert found == arguments(*underscores)
    assert (found["learning_rate"], found["adam_beta1"], found["metric_ks"], found["seed"]) == (0.25, 0.5, [3, 10], 3)
    assert found["principled_kwargs"] == {"fraction": 0.5}


def test_messages_spell_options_as_the_command_line_does() -> None:
    for message, expected in (
        ("learning_rate is -1: lower max_grad_norm", "--learning-rate is -1: lower --max-grad-norm"),
        ("seed is -1", "--seed is -1"),
        ("the seed is -1", "the seed is -1"),
        ("dataloader_drop_last=True leaves", "--dataloader-drop-last=True leaves"),
        ("/runs/output_dir/x has 'eval_steps'", "/runs/output_dir/x has 'eval_steps'"),
        ("call trainer.push_to_hub() after", "call trainer.push_to_hub() after"),
    ):
        assert use_hyphens(message) == expected


def test_warnings_spell_options_as_the_command_line_does(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", lambda *said: print(warnings.formatwarning(*said[:4]), end=""))
    before = warnings.formatwarning
    assert train(prepared, tmp_path / "run", "--num-train-epochs", "1", "--optim", "lomo") == 2
    assert capsys.readouterr().out.splitlines() == [
        "warning: this training takes 4 steps (64 lists in batches of 16): too few to learn much; lower "
        "--per-device-train-batch-size or raise --num-train-epochs"
    ]
    assert warnings.formatwarning is before


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--learning_rate -1", "--learning-rate is -1: expected more than 0"),
        ("--seed -1", "--seed is -1: expected at least 0"),
        ("--num-train-epochs 0", "--num-train-epochs is 0: expected more than 0; leave it out"),
        ("--metric-for-best-model ndcg", "--metric-for-best-model is 'ndcg': expected a cut-off of --metric-ks"),
        (
            "--eval-strategy steps --save-strategy epoch",
            "--eval-strategy is steps and --save-strategy epoch: the best",
        ),
        ("--optim lom", "argument --optim: invalid choice: 'lom' .*did you mean 'lomo'"),
        ("--lr-scheduler-type bent", "cannot be set up: bent is not a valid SchedulerType"),
        ("--learning-rat 1", "unknown argument '--learning-rat' of train; did you mean '--learning-rate'"),
        ("--train-on al", "invalid choice: 'al'.*did you mean 'all'"),
        ("--train-on all --on-top-of lambdamart", "--on-top-of chooses the number of trees on validation lists"),
        ("--train-on all --eval-steps 3", "--eval-steps is about evaluations during training"),
        ("--optim adamw_bnb_8bit", "the training cannot be set up: You need to install `bitsandbytes`"),
        ("--report-to wandb", "the training cannot be set up: .*wandb to be installed"),
        ("--data {0}/../none", "none is not a folder of prepared lists"),
    ],
)
def test_mistake_gives_one_line_and_exit_code_2(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    assert train(prepared, tmp_path / "run", *options.format(prepared).split()) == 2
    line = error_line(capsys)
    assert re.search(words, line), line


@pytest.mark.slow
def test_an_earlier_run_is_not_overwritten(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(prepared, run, "--max-steps", "4") == 0
    weights, names = (run / "model.safetensors").read_bytes(), sorted(path.name for path in run.iterdir())
    capsys.readouterr()
    assert train(prepared, run, "--max-steps", "4", "--seed", "3") == 2
    assert error_line(capsys) == (
        f"hf-rerank: {run} contains a finished model (config.json, model.safetensors, results.json): choose another "
        "folder, remove it, or resume with --resume-from-checkpoint last"
    )
    assert (run / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in run.iterdir()) == names
    assert train(prepared, run, "--max-steps", "4", "--resume-from-checkpoint", "last") == 0
    assert (run / "model.safetensors").read_bytes() == weights
    for path in run.iterdir():
        if path.is_file():
            path.unlink()
    capsys.readouterr()
    assert train(prepared, run, "--max-steps", "4") == 2
    assert "contains checkpoints of another training (checkpoint-4)" in error_line(capsys)


# ------------------------------------------------------------------------------------------- training on all lists


@pytest.mark.slow
def test_train_on_all_uses_training_and_validation_lists(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    capsys.readouterr()
    assert train(prepared, run, "--train-on", "all") == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "",
        "trained on all 96 lists: none are left to evaluate the model on",
        "no checkpoint was chosen as the best: the model is that of the last step, 6",
        f"model in {run}",
    ]
    results = json.loads((run / "results.json").read_text())
    assert results["data"]["train"]["lists"] == 64 + 32
    assert results["data"].keys() == {"train"}
    assert results["evaluations"] == {}
    assert results["training"]["best_step"] is None
    assert Reranker.from_pretrained(run).rerank([{"kind": [0, 2], "price": [0.9, 0.1]}])
    evaluate = ["evaluate", "--model", str(run), "--data", str(prepared), "--add-to-results"]
    assert cli.main(evaluate) == 0
    assert json.loads((run / "results.json").read_text())["evaluations"].keys() == {"test"}


@pytest.mark.slow
def test_train_on_all_expects_the_same_rate_of_unknown_values(tmp_path: Path) -> None:
    """The rate in the validation lists for a model that was trained without them."""
    lists = write_lists(tmp_path / "lists", train=64, validation=32)
    path = lists / "validation-00000-of-00001.parquet"
    table = pq.read_table(path)
    kinds = [[kind + 10 * (number < 12) for kind in row] for number, row in enumerate(table["kind"].to_pylist())]
    pq.write_table(table.set_column(0, "kind", pa.array(kinds)), path)
    for run, options in (("chosen", []), ("final", ["--train-on", "all"])):
        assert train(lists, tmp_path / run, *options) == 0
        config = json.loads((tmp_path / run / "config.json").read_text())
        assert config["item_unknown_rates"] == [12 / 32], run


def test_lists_without_a_validation_split_need_train_on_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = write_lists(tmp_path / "lists", train=40)
    assert train(lists, tmp_path / "run") == 2
    assert error_line(capsys).endswith(
        "has no lists in its validation split: prepare more lists, or give --train-on all, which chooses no best "
        "checkpoint"
    )
    assert train(lists, tmp_path / "run", "--train-on", "all") == 0
    assert "trained on all 40 lists" in capsys.readouterr().out


@pytest.mark.slow
def test_output_names_the_checkpoint_that_the_model_is(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(prepared, tmp_path / "best", "--num-train-epochs", "2") == 0
    assert re.search(r"^the model is that of step [48] of 8, the best by ndcg@10$", capsys.readouterr().out, re.M)
    assert train(prepared, tmp_path / "last", "--eval-strategy", "no") == 0
    printed = capsys.readouterr().out
    assert "no checkpoint was chosen as the best: the model is that of the last step, 4" in printed
    assert "On the validation split:" in printed


def test_only_the_main_process_prints(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a second process sees itself; tests/training has trainings of two processes."""
    monkeypatch.setattr(RerankTrainingArguments, "process_index", property(lambda self: 1))
    monkeypatch.setattr(RerankTrainingArguments, "local_process_index", property(lambda self: 1))
    capsys.readouterr()
    assert train(prepared, tmp_path / "run", "--eval-strategy", "no", "--save-strategy", "no", "--plots") == 0
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------ every command


@pytest.mark.parametrize("folder", [".", "..", "/", "sub/.."])
def test_root_and_current_folder_are_refused_as_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for command in (
        "train --model prm --data x",
        "simulate ad --lists 3",
        "prepare prm_public --raw-dir x",
        "initial-rank --data x",
        "vectors --data x",
        "export --model x",
    ):
        assert cli.main([*command.split(), "--output-dir", folder]) == 2
        assert re.match(
            f"hf-rerank: --output-dir {re.escape(folder)} is the (root|current) folder", error_line(capsys)
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "sub"]


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "pyarrow", "numpy", "polars", "tqdm"):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(100_000):
                pass
            sys.exit("the signal was lost")

sys.meta_path.insert(0, Interrupt())
from hf_rerank import cli
for line in sys.stdin.read().splitlines():
    print(line.split()[0], cli.main(line.split()))
"""


def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path: Path) -> None:
    commands = [
        "simulate ad --lists 3 --output-dir out",
        "schema infer x.csv",
        "prepare own --input x.csv --schema s.json --output-dir out",
        "initial-rank --data x --output-dir out",
        "vectors --data x --output-dir out",
        "train --model prm --data x --output-dir out",
        "evaluate --model x --data x",
        "rank --model x --input x.csv --output o.csv",
        "export --model x --output-dir out",
        "push --model x --repo-id a/b",
    ]
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], input="\n".join(commands), capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.stdout.splitlines() == [f"{command.split()[0]} 130" for command in commands], ran.stderr
    assert ran.stderr.splitlines() == ["hf-rerank: stopped by Ctrl-C; finished files are complete"] * len(commands)


def test_ctrl_c_while_commands_are_imported_is_one_line(tmp_path: Path) -> None:
    code = INTERRUPTED.replace('name.split(".")[0] in (', 'name.startswith("hf_rerank.commands") or name in (')
    ran = subprocess.run([sys.executable, "-c", code], input="train", capture_output=True, text=True, cwd=tmp_path)
    assert (ran.stdout, ran.stderr) == ("train 130\n", "hf-rerank: stopped by Ctrl-C; finished files are complete\n")


@pytest.mark.parametrize(
    ("environment", "path", "home"),
    [
        ({}, "/sys/me/.cache", "/sys/me/.cache/huggingface"),
        ({}, "/sys/me/.cache/huggingface/hub/x", "/sys/me/.cache/huggingface"),
        ({"XDG_CACHE_HOME": "/sys/xdg"}, "/sys/xdg/huggingface/datasets", "/sys/xdg/huggingface"),
        ({"HF_HOME": "/sys/hf"}, "/sys/hf/modules", "/sys/hf"),
        ({"HF_HOME": "/sys/hf"}, "/sys/me/.cache/huggingface", None),
        ({}, "/sys/other/lists", None),
    ],
)
def test_error_about_an_unwritable_cache_suggests_hf_home(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    path: str,
    home: str | None,
) -> None:
    def refused(options: Any) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/sys/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(train_command, "run", refused)
    assert cli.main(["train", "--data", "x", "--output-dir", "runs/first"]) == 2
    expected = f"hf-rerank: [Errno 1] Operation not permitted: '{path}'"
    if home is not None:
        expected += (
            f"; the cache of Hugging Face libraries goes to {home}: set HF_HOME to a folder that you may write to"
        )
    assert error_line(capsys) == expected
