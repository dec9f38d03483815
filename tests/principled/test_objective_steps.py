"""An objective at a step: warm-up, factors, random draws; and its settings."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch
from objective_by_hand import KEYS, LISTS, MASK, expected, perturbed_orders, plain, run, values_of
from objective_cases import CASES, REFERENCE, SCALED

from hf_rerank.errors import InputError
from hf_rerank.principled import PRESETS, Pass, Perturbed, Soft, preset_objective
from hf_rerank.principled import objective as objective_module


@pytest.mark.parametrize(
    ("warmup", "step", "share"),
    [
        (0.5, 0, 0.0),
        (0.5, 1, 0.25),
        (0.5, 2, 0.5),
        (0.5, 4, 1.0),
        (0.5, 7, 1.0),
        (1.0, 4, 0.5),
        (1.0, 7, 0.875),
        (0.0, 0, 1.0),
    ],
)
@pytest.mark.parametrize("preset", ["scaled", "reference"])
def test_weights_rise_linearly_during_warmup(preset: str, warmup: float, step: int, share: float) -> None:
    """Over 8 steps; warm-up applies to all weights, but not to task losses or logged terms."""
    objective = replace(PRESETS[preset], warmup=warmup)
    perturbed = perturbed_orders(PRESETS[preset], step=step)
    written_out = expected(objective, perturbed, list(range(LISTS)), factors=lambda term: share)
    for keys in (None, KEYS):
        losses, _ = run(objective.at(step=step, steps=8, list_keys=keys))
        assert values_of(losses) == pytest.approx(written_out, rel=1e-6 if keys is not None else 1e-9)


def test_the_warmup_factor_is_on_the_device_of_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a step copies nothing to the device, and torch.compile does not recompile for each value."""
    monkeypatch.setattr(
        objective_module, "step_keys", lambda keys, **_: keys
    )  # the first integer operation on meta takes seconds
    ramp = replace(SCALED, warmup=0.5).at(step=1, steps=8, list_keys=KEYS.to("meta")).keywords["ramp"]
    assert (ramp.shape, ramp.dtype, ramp.device.type) == ((), torch.float32, "meta")
    ramp = replace(SCALED, warmup=0.5).at(step=1, steps=8, list_keys=KEYS).keywords["ramp"]
    assert ramp.item() == 0.25


def test_a_warmup_needs_the_number_of_steps() -> None:
    with pytest.raises(InputError, match="with warmup the objective needs the number of steps"):
        replace(SCALED, warmup=0.1).at(step=3)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_factors_scale_the_terms_of_a_step(as_tensor: bool) -> None:
    """Each scales its term in the loss and its gradient, on top of warm-up; logged terms are unscaled; default 1."""
    factors = {"convergence": 0.25, "cross": 3.0}
    given = {name: torch.tensor(factor) if as_tensor else factor for name, factor in factors.items()}
    objective = replace(REFERENCE, warmup=1.0)
    losses, scorer = run(objective.at(step=4, steps=8, factors=given))
    perturbed, everyone = perturbed_orders(REFERENCE, step=4), list(range(LISTS))
    scaled = expected(REFERENCE, perturbed, everyone, factors=lambda term: {**factors, "adversarial": 1.0}[term] * 0.5)
    assert values_of(losses) == pytest.approx(scaled, rel=1e-9)
    slopes = torch.autograd.grad(losses["loss"], scorer.quality)[0][MASK]
    weights = {"convergence": 0.25 * 0.5, "adversarial": 0.5, "cross": 3.0 * 0.5}
    losses, scorer = run(
        replace(REFERENCE, terms=tuple(replace(term, weight=weights[term.name]) for term in REFERENCE.terms)).at(
            step=4
        )
    )
    torch.testing.assert_close(slopes, torch.autograd.grad(losses["loss"], scorer.quality)[0][MASK])


def test_a_factor_for_an_unknown_term_is_rejected() -> None:
    with pytest.raises(InputError, match=r"no term 'convergense'.*adversarial; did you mean 'convergence'"):
        SCALED.at(step=0, factors={"convergense": 0.5})
    with pytest.raises(InputError, match="the terms are none"):
        PRESETS["augmentation"].at(step=0, factors={"convergence": 0.5})


def test_at_changes_only_the_random_draws() -> None:
    objective, keys = replace(PRESETS["paper"], seed=4), torch.tensor([1, 2, 3, 4])
    later = objective.at(step=12, steps=20, list_keys=keys)
    assert isinstance(later, functools.partial)
    assert later.func is objective
    losses, scorer = run(later)
    third = plain(scorer.calls[0].orders[LISTS:], list(range(LISTS)))
    written_out = expected(PRESETS["paper"], {"third": third}, list(range(LISTS)))
    assert values_of(losses) == pytest.approx(written_out, rel=1e-9)
    assert {"third": third} == perturbed_orders(objective, step=12, list_keys=keys)


def test_settings_are_plain_json() -> None:
    objective = preset_objective("reference", adversarial_weight=3, convergence_weight=0, warmup=0.5, seed=3)
    objective = replace(objective, passes=(Pass("first"), Pass("third", Perturbed(of=Soft(sinkhorn=2)), "fresh")))
    soft = {"relaxation": "softsort", "temperature": 1.0, "sinkhorn": 2, "straight_through": False}
    perturbed = {"kind": "adjacent_swap", "of": {"soft": soft}, "strength": 1}
    assert json.loads(json.dumps(objective.settings())) == {
        "passes": [
            {"name": "first", "order": "given", "dropout": "shared"},
            {"name": "third", "order": {"perturbed": perturbed}, "dropout": "fresh"},
        ],
        "terms": [
            {
                "name": "adversarial",
                "first": "first",
                "second": "third",
                "weight": 3,
                "space": "output",
                "positions": "output",
                "reduction": "mean",
                "stop_gradient": None,
            }
        ],
        "task_loss_on": ["first", "third"],
        "task_loss": "own",
        "fraction": 1.0,
        "warmup": 0.5,
        "seed": 3,
    }


def test_settings_distinguish_objectives() -> None:
    """Two objectives with the same settings are equal, so a results file identifies the objective."""
    objectives = [*CASES.values(), replace(SCALED, seed=1), replace(SCALED, warmup=0.1)]
    by_settings = {json.dumps(objective.settings()): objective for objective in objectives}
    assert all(by_settings[json.dumps(objective.settings())] == objective for objective in objectives)
    assert len(by_settings) > len(objectives) - 5, "few of the cases are equal to another"
