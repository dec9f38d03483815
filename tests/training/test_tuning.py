"""Hyperparameter search: model_init, pruning, resuming, the best run saved as a complete model, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_world import SCHEMA, tiny_model

from hf_rerank import ListProcessor, PRMConfig, Reranker, RerankTrainer, RerankTrainingArguments
from hf_rerank.cli import main
from hf_rerank.errors import InputError
from hf_rerank.principled import DEFAULT_PRESET, PRESETS
from hf_rerank.training.search_spaces import read_spaces, suggest

optuna = pytest.importorskip("optuna")


@pytest.fixture
def make(lists: dict[str, datasets.Dataset], processor: ListProcessor, tmp_path: Path) -> Any:
    """A trainer whose models are created by ``model_init``."""

    def made(folder: str = "run", init: Any = None, objective: Any = None, **options: Any) -> RerankTrainer:
        plain = {"num_train_epochs": 2, "per_device_train_batch_size": 64, "principled": "none", "disable_tqdm": True}
        args = RerankTrainingArguments(str(tmp_path / folder), use_cpu=True, **{**plain, **options})
        return RerankTrainer(
            args=args,
            train_dataset=lists["train"],
            eval_dataset=lists["validation"],
            processing_class=processor,
            objective=objective,
            model_init=init or (lambda: tiny_model("prm", processor.schema, num_attention_heads=1)),
        )

    return made


@pytest.mark.slow
def test_every_training_starts_with_a_new_model_from_model_init(make: Any) -> None:
    trainer = make()
    trainer.train()
    first = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, first[name]), name
    assert trainer.model.config.item_unknown_rates, "set for the new model as well"


def test_a_trainer_needs_a_model_or_model_init(make: Any, processor: ListProcessor, tmp_path: Path) -> None:
    off = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    args = RerankTrainingArguments(str(tmp_path / "run"), use_cpu=True, **off)
    with pytest.raises(InputError, match="one of model and model_init"):
        RerankTrainer(args=args, processing_class=processor)
    model = tiny_model("prm", processor.schema, num_attention_heads=1)
    with pytest.raises(InputError, match="one of model and model_init"):
        RerankTrainer(model, args, processing_class=processor, model_init=lambda: model)
    with pytest.raises(InputError, match="model_init returned a NoneType"):
        RerankTrainer(args=args, processing_class=processor, model_init=lambda: None)
    with pytest.raises(InputError, match="give the trainer model_init"):
        RerankTrainer(model, args, processing_class=processor).hyperparameter_search()


@pytest.mark.slow
def test_the_best_trial_is_saved_as_a_complete_model(make: Any, processor: ListProcessor, tmp_path: Path) -> None:
    def init(trial: Any = None) -> Any:
        size = 8 if trial is None else trial.suggest_categorical("hidden_size", [4, 8])
        return tiny_model("prm", processor.schema, num_attention_heads=1, hidden_size=size)

    def space(trial: Any) -> dict[str, Any]:
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}

    best = make(init=init).hyperparameter_search(space, n_trials=3)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/run/study.sqlite3")
    values = [entry.value for entry in study.trials]
    assert len(values) == 3
    assert best.objective == max(values)
    saved = Reranker.from_pretrained(tmp_path / "run" / "best")
    results = json.loads((tmp_path / "run" / "best" / "results.json").read_text())
    assert results["tuning"]["trial"] == int(best.run_id)
    assert results["tuning"]["options"] == best.hyperparameters
    assert saved.model.config.hidden_size == best.hyperparameters["hidden_size"]
    assert results["evaluations"]["eval"]["eval_ndcg@10"] == best.objective
    assert not any((tmp_path / "run" / "trials").iterdir())


@pytest.mark.slow
def test_an_interrupted_study_runs_the_same_options_again(make: Any, tmp_path: Path) -> None:
    def space(trial: Any) -> dict[str, Any]:
        found = {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}
        if trial.number == 1:
            raise SystemExit("as a kill would")
        return found

    with pytest.raises(SystemExit):
        make().hyperparameter_search(space, n_trials=2)
    storage = f"sqlite:///{tmp_path}/run/study.sqlite3"
    unfinished = optuna.load_study(study_name=None, storage=storage).trials[1]
    assert unfinished.state == optuna.trial.TrialState.RUNNING
    make().hyperparameter_search(space, n_trials=2)
    trials = optuna.load_study(study_name=None, storage=storage).trials
    assert [entry.state.name for entry in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials[2].params == unfinished.params
    with pytest.raises(InputError, match="holds a study with other lists or options"):
        make(num_train_epochs=1).hyperparameter_search(space, n_trials=3)


@pytest.mark.slow
def test_pruned_and_failed_trials_are_reported(make: Any, capsys: Any, tmp_path: Path) -> None:
    class PruneAll(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return trial.number == 1

    def space(trial: Any) -> dict[str, Any]:
        return {"learning_rate": 1e-3} if trial.number < 2 else {"obedience_k": -1}

    best = make().hyperparameter_search(space, n_trials=3, pruner=PruneAll())
    assert best.run_id == "0"
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert "[1/3] ndcg@10 0." in lines[0]
    assert "[2/3] pruned" in lines[1]
    assert "[3/3] failed: obedience_k is -1" in lines[2]


def test_the_default_space_keeps_the_numbers_of_the_user(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = []

    def keep(optuna: Any, study: Any, trainer: Any, space: Any, *_: Any) -> None:
        spaces.append(space)
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_rerank.training.tuning._run_trial", keep)
    numbers = {"fraction": 0.25, "warmup": 0.5, "adversarial_weight": 0}
    for options in (
        {"principled": "scaled", "principled_kwargs": numbers},
        {"principled": DEFAULT_PRESET, "objective": PRESETS["scaled"]},
    ):
        with pytest.raises(KeyboardInterrupt):
            make(folder=f"run{len(spaces)}", **options).hyperparameter_search()
    chosen = {"learning_rate": 1e-3, "convergence_weight": 3.0}
    trial = optuna.trial.FixedTrial(chosen)
    assert spaces[0](trial) == {"learning_rate": 1e-3, "principled_kwargs": {**numbers, "convergence_weight": 3.0}}
    # The weights of an objective that was given are no options.
    assert spaces[1](trial) == {"learning_rate": 1e-3}


def test_unsupported_upstream_search_options_are_rejected(make: Any) -> None:
    trainer = make()
    with pytest.raises(InputError, match="direction is not supported"):
        trainer.hyperparameter_search(direction="minimize")
    with pytest.raises(InputError, match="expected 'optuna'"):
        trainer.hyperparameter_search(backend="ray")
    with pytest.raises(InputError, match="at least 1"):
        trainer.hyperparameter_search(n_trials=0)


def test_missing_optuna_is_reported_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", "--model", "prm", "--data", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 2
    assert 'needs optuna: pip install "hf-rerank[tune]"' in capsys.readouterr().err


def test_search_spaces_are_parsed_from_text() -> None:
    objective = PRESETS["scaled"]
    texts = ["learning_rate=1e-4:1e-2:log", "hidden_size=16,32", "num_hidden_layers=1:3", "convergence_weight=1:10"]
    found = read_spaces(texts, PRMConfig, objective, {}, {})
    assert found["training"] == {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    assert found["model"] == {"hidden_size": [16, 32], "num_hidden_layers": {"low": 1, "high": 3, "log": False}}
    assert found["principles"] == {"convergence_weight": {"low": 1, "high": 10, "log": False}}
    plain = read_spaces([], PRMConfig, objective, {"hidden_size": 8}, {"learning_rate": 1e-3})
    assert plain["training"] == {}
    assert "hidden_size" not in plain["model"]
    # The default weight of the convergence term is 2: 2 / 30 to 6.
    assert plain["principles"]["convergence_weight"] == pytest.approx({"low": 2 / 30, "high": 6.0, "log": True})
    trial = optuna.trial.FixedTrial({"num_hidden_layers": 2, "hidden_size": 32})
    assert suggest(trial, found["model"]) == {"num_hidden_layers": 2, "hidden_size": 32}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat=1:2", "did you mean 'learning_rate'"),
        ("learning_rate", "expected KEY=SPACE"),
        ("learning_rate=0.1", "one value is not a choice"),
        ("learning_rate=2:1", "LOW < HIGH"),
        ("learning_rate=0:1:log", "log: above 0"),
        ("learning_rate=a:b", "expected LOW:HIGH"),
        ("seed=1:5", "exclude each other"),
    ],
)
def test_wrong_search_spaces_are_rejected(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_spaces([text], PRMConfig, PRESETS["scaled"], {}, {"seed": 1})


@pytest.mark.slow
def test_tune_command(lists: dict[str, datasets.Dataset], tmp_path: Path, capsys: Any) -> None:
    for split, of_split in (*lists.items(), ("test", lists["validation"])):
        of_split.to_parquet(tmp_path / "lists" / f"{split}-00000-of-00001.parquet")
    SCHEMA.save(tmp_path / "lists" / "schema.json")
    given = ["tune", "--model", "dnn", "--data", str(tmp_path / "lists"), "--output-dir", str(tmp_path / "out")]
    given += ["--trials", "2", "--search", "embedding_dim=2,4", "--set", "hidden_sizes=[8]", "--num_train_epochs", "1"]
    given += ["--principled", "none"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "[2/2] ndcg@10 0." in printed
    assert f"model in {tmp_path / 'out' / 'best'}" in printed
    assert Reranker.from_pretrained(tmp_path / "out" / "best").model.config.embedding_dim in (2, 4)
    assert main(["tune", *given[1:], "--set", "embedding_dim=3"]) == 2
    assert "exclude each other" in capsys.readouterr().err
