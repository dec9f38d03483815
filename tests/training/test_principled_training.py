"""Principled options in whole trainings: resumed, in bf16, with warm-up, with another task loss."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_world import perturbed_by

from hf_rerank import InputError, PRMForReranking, RerankTrainer
from hf_rerank.principled import PRESETS
from hf_rerank.principled.objective import Pass, Soft
from hf_rerank.principled.orders import PERTURBATIONS
from hf_rerank.training.callbacks import HealthCallback

Make = Callable[..., RerankTrainer]
STEP_BY_STEP = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
}


def logged(trainer: RerankTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


SOFT = replace(
    PRESETS["scaled"],
    passes=(
        PRESETS["scaled"].passes[0],
        Pass("second", Soft("neuralsort", sinkhorn=2, straight_through=True)),
        PRESETS["scaled"].passes[2],
    ),
)
OBJECTIVES: dict[str, dict[str, Any]] = {
    **{kind: {"objective": perturbed_by(kind, 2)} for kind in PERTURBATIONS},
    **{name: {"principled": name} for name in ("reference", "r_drop", "augmentation")},
    "part of the lists, warmed up": {"principled_kwargs": {"fraction": 0.3, "warmup": 0.8}},
    "soft": {"objective": SOFT},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_resumed_training_equals_an_unbroken_one(make_trainer: Make, make_model: Any, weights: Any, name: str) -> None:
    """Resumed after 2 of 4 steps: random draws depend only on seed, step and list."""
    settings = {**STEP_BY_STEP, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, **OBJECTIVES[name]}
    model = {"hidden_dropout_prob": 0.1, "unknown_rate": 0.05}
    unbroken = make_trainer(make_model(**model), folder="unbroken", **settings)
    unbroken.train()
    resumed = make_trainer(make_model(seed=9, **model), folder="resumed", **settings)
    resumed.train(resume_from_checkpoint=str(Path(str(unbroken.args.output_dir)) / "checkpoint-2"))
    before, after = weights(unbroken.model), weights(resumed.model)
    assert all(before[name].equal(after[name]) for name in before)
    terms = [f"{term.name}_loss" for term in unbroken.principled_objective.terms] or ["further_task_loss"]
    for term in terms:
        assert logged(resumed, term) == logged(unbroken, term)
        assert any(logged(unbroken, term))


@pytest.mark.slow
def test_each_perturbation_gives_a_different_training(make_trainer: Make, weights: Any) -> None:
    """So the runs above do differ from each other."""
    found = []
    for kind in PERTURBATIONS:
        trainer = make_trainer(folder=kind, max_steps=2, objective=perturbed_by(kind, 2), **STEP_BY_STEP)
        trainer.train()
        found.append(torch.cat([value.flatten() for value in weights(trainer.model).values()]))
    for number, one in enumerate(found):
        assert all(not one.equal(other) for other in found[number + 1 :])


def test_warmup_is_a_fraction_of_all_training_steps(make_trainer: Make, make_model: Any) -> None:
    """8 steps, half of them warm-up: weights times 0, 1/4, 1/2, 3/4, then 1. The weights of the model stay
    fixed: the loss of each step is its task loss plus the weighted terms."""
    model = make_model(hidden_dropout_prob=0.0, unknown_rate=0.0)
    options = {"principled": "scaled", "principled_kwargs": {"warmup": 0.5}, "learning_rate": 1e-30}
    trainer = make_trainer(model, max_steps=8, **options, **STEP_BY_STEP)
    trainer.train()
    terms = zip(
        *(logged(trainer, name) for name in ("loss", "task_loss", "convergence_loss", "adversarial_loss")), strict=True
    )
    for step, (loss, task, convergence, adversarial) in enumerate(terms):
        ramp = min(1.0, step / 4)
        assert loss == pytest.approx(task + ramp * (2 * convergence + 0.5 * adversarial), abs=2e-4), step
        assert 2 * convergence + 0.5 * adversarial > 0.001


@pytest.mark.slow
def test_a_training_in_bf16_is_evaluated_in_float32(make_trainer: Make, make_model: Any) -> None:
    """The weights are float32, so a trainer without bf16 must give exactly the same numbers."""
    trainer = make_trainer(bf16=True, max_steps=3, **STEP_BY_STEP)
    precisions = []
    trainer.model.scorer.register_forward_hook(lambda module, inputs, output: precisions.append(output.dtype))
    trainer.train()
    assert set(precisions) == {torch.bfloat16}
    precisions.clear()
    found = trainer.evaluate()
    assert set(precisions) == {torch.float32}
    plain = make_model()
    plain.load_state_dict(trainer.model.state_dict())
    expected = make_trainer(plain, folder="plain").evaluate()
    for name, value in expected.items():
        if not name.endswith(("runtime", "per_second", "preparation_time", "epoch")):
            assert found[name] == pytest.approx(value, rel=0, abs=0, nan_ok=True), name


def test_task_loss_of_the_arguments_is_used_and_saved(make_trainer: Make, make_model: Any, tmp_path: Path) -> None:
    """``reference`` trains on the model's own loss: PRM's softmax loss, -sum of log softmax over the clicked items."""
    model = make_model()
    assert model.config.task_loss == "binary_log_loss"
    trainer = make_trainer(model, max_steps=1, principled="reference", **STEP_BY_STEP)
    assert (model.config.task_loss, trainer.principled_objective.task_loss) == ("own", "softmax_loss")
    trainer.train()
    assert {"further_task_loss", "convergence_loss", "adversarial_loss", "cross_loss"} <= set(
        trainer.state.log_history[0]
    )
    assert logged(trainer, "task_loss")[0] > 2.0  # about clicks times log n; a mean of log-losses is below 1
    trainer.save_model(str(tmp_path / "saved"))
    assert PRMForReranking.from_pretrained(tmp_path / "saved").config.task_loss == "own"
    assert json.loads((tmp_path / "saved" / "results.json").read_text())["task_loss"] == "softmax_loss"


def test_losses_without_probabilities_are_compared_as_logits(make_trainer: Make, make_model: Any) -> None:
    """A preset compares logits instead; an objective with probabilities is rejected."""
    trainer = make_trainer(make_model(task_loss="lambda_loss"))
    assert {term.space for term in trainer.principled_objective.terms} == {"logit"}
    assert {term["space"] for term in trainer.results["objective"]["terms"]} == {"logit"}
    with pytest.raises(InputError, match=r"lambda_loss has no probabilities: .*space='logit'"):
        replace(PRESETS["scaled"], task_loss="lambda_loss")


def test_a_custom_objective_excludes_principled_options(make_trainer: Make) -> None:
    for options in ({"principled": "paper"}, {"principled_kwargs": {"warmup": 0.1}}):
        with pytest.raises(InputError, match="objective and principled exclude each other"):
            make_trainer(objective=PRESETS["none"], **options)


# ---------------------------------------------------------------------------------------------- collapse and explosion


@pytest.mark.slow
def test_collapse_gives_one_warning(make_trainer: Make) -> None:
    """An extreme weight collapses the scores of every list; the warning names the weight."""
    first, second = PRESETS["scaled"].terms
    objective = replace(PRESETS["scaled"], terms=(replace(first, weight=1e6, space="logit"), second))
    trainer = make_trainer(
        objective=objective, num_train_epochs=6, learning_rate=0.05, lr_scheduler_type="linear", **STEP_BY_STEP
    )
    with pytest.warns(UserWarning, match=r"of \d+% of the lists have a spread below 0.001 \(step \d+\)") as caught:
        trainer.train()
    messages = [str(one.message) for one in caught if "a spread below" in str(one.message)]
    assert len(messages) == 1, "one warning"
    assert "convergence_weight" in messages[0]
    assert max(logged(trainer, "collapsed_share")) > 0.1
    assert trainer.evaluate()["eval_collapsed_share"] > 0.1


def test_exploding_gradients_give_one_warning(make_trainer: Make) -> None:
    """The gradient of a term with a weight of a million is clipped to norm 1, and the warning reports its norm."""
    trainer = make_trainer(
        principled_kwargs={"adversarial_weight": 1e6, "convergence_weight": 0.0}, max_steps=3, **STEP_BY_STEP
    )
    with pytest.warns(UserWarning, match="the gradient norm is") as caught:
        trainer.train()
    messages = [str(one.message) for one in caught if "gradient norm" in str(one.message)]
    assert len(messages) == 1
    assert "clipped to max_grad_norm=1.0" in messages[0]
    assert "lower adversarial_weight (now 1e+06, its term is" in messages[0]
    assert max(logged(trainer, "grad_norm")) > 100


def test_a_healthy_training_gives_no_warning(make_trainer: Make) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(a spread below|gradient norm)")
        trainer = make_trainer(max_steps=8, **STEP_BY_STEP)
        trainer.train()
    assert logged(trainer, "collapsed_share") == [0.0] * 8
    assert 0 < max(logged(trainer, "grad_norm")) < 100


@pytest.mark.parametrize(
    ("terms", "remedy"),
    [
        ({"task_loss": 5.0, "convergence_loss": 0.1, "adversarial_loss": 0.1}, "lower learning_rate or conv"),
        (
            {"task_loss": 0.5, "convergence_loss": 1.0, "adversarial_loss": 0.1},
            r"lower convergence_weight \(now 2, its",
        ),
        (
            {"task_loss": 0.5, "convergence_loss": 1.0, "adversarial_loss": 30.0},
            r"adversarial_weight \(now 0.5, its term is 86%",
        ),
    ],
)
def test_warnings_suggest_lowering_the_weight_of_the_largest_term(terms: dict[str, float], remedy: str) -> None:
    """2 times 1 is 2, 0.5 times 30 is 15: 86 % of 0.5 + 2 + 15."""
    callback = HealthCallback(PRESETS["scaled"])
    state, arguments = SimpleNamespace(global_step=3), SimpleNamespace(max_grad_norm=1.0)
    with pytest.warns(UserWarning, match=remedy):
        callback.on_log(arguments, state, None, {**terms, "collapsed_share": 0.5})
    with pytest.warns(UserWarning, match=remedy):
        callback.on_log(arguments, state, None, {**terms, "grad_norm": 101.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.on_log(arguments, state, None, {**terms, "collapsed_share": 1.0, "grad_norm": 1e9})
        HealthCallback(PRESETS["scaled"]).on_log(arguments, state, None, {"collapsed_share": 0.1, "grad_norm": 100.0})
