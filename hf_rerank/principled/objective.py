"""The objective of principled learning: the task loss and the consistency terms, over any scorer.

``L = L_task(R(X, P), y) + w1 L_CS(P, P') + w2 L_CS(P, P^)``: pass 1 scores the given order P, pass 2 the model's own
order P', pass 3 a slightly perturbed order P^. The paper leaves choices open; each is a field of
``PrincipledObjective``, and a preset is a row of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hf_rerank.errors import InputError, suggestion
from hf_rerank.losses import TASK_LOSSES, centred, probabilities
from hf_rerank.principled.consistency import Reduction, consistency_loss, wide
from hf_rerank.principled.orders import (
    check_perturbation,
    keyed_perturb,
    keyed_uniform,
    positions_from_scores,
    step_keys,
)
from hf_rerank.principled.relaxations import RELAXATIONS, check_relaxation, moved_places, soft_order

PRESETS: dict[str, dict[str, Any]] = {
    # The literal sum grows with the square of the list's length in P1 and not at all in P2; divided by the sum of the
    # weights, each term is a mean squared score difference over the items that moved, whatever the length.
    "scaled": {
        "convergence_weight": 20.0,
        "adversarial_weight": 5.0,
        "cross_weight": 0.0,
        "consistency_space": "probability",
        "consistency_positions": "input",
        "consistency_reduction": "weighted_mean",
        "task_loss_passes": "first",
        "perturbed_order": "initial",
    },
    # The text, literally.
    "paper": {
        "convergence_weight": 1.0,
        "adversarial_weight": 1.0,
        "cross_weight": 0.0,
        "consistency_space": "probability",
        "consistency_positions": "input",
        "consistency_reduction": "sum",
        "task_loss_passes": "first",
        "perturbed_order": "initial",
    },
    # What the authors' public code does; it also trains on each model's own task loss.
    "reference": {
        "convergence_weight": 1.0,
        "adversarial_weight": 1.0,
        "cross_weight": 1.0,
        "consistency_space": "output",
        "consistency_positions": "output",
        "consistency_reduction": "mean",
        "task_loss_passes": "every",
        "perturbed_order": "own",
    },
    "none": {
        "convergence_weight": 0.0,
        "adversarial_weight": 0.0,
        "cross_weight": 0.0,
        "consistency_space": "probability",
        "consistency_positions": "input",
        "consistency_reduction": "weighted_mean",
        "task_loss_passes": "first",
        "perturbed_order": "initial",
    },
}
# Values of the fields that are names.
CHOICES: dict[str, tuple[str, ...]] = {
    "preset": tuple(PRESETS),
    "consistency_space": ("probability", "logit", "output"),
    "consistency_positions": ("input", "output"),
    "consistency_reduction": ("sum", "mean", "weighted_mean"),
    "task_loss_passes": ("first", "every"),
    "perturbed_order": ("initial", "own"),
    "ranking_gradient": ("hard", *RELAXATIONS),
    "stop_gradient": ("none", "first", "second"),
    "task_loss": tuple(TASK_LOSSES),
}


@dataclass(frozen=True)
class PrincipledObjective:
    """The task loss and the consistency terms, in at most two encoder calls over one embedding.

    Pass it, or ``at(...)`` of a step, as ``objective`` to a model's ``forward``. An order that depends on no score is
    scored in one batch with the given order, the others in a second call. A field that is None takes the value of the
    preset, and stays None where it would change nothing; given there, it is refused.

    Args:
        preset: ``scaled`` (the default), ``paper`` (the formula as printed), ``reference`` (the authors' public code),
            ``none`` (the task loss alone); the rows of ``PRESETS``.
        convergence_weight: w1, of the pair (pass 1, pass 2), at least 0; at 0 pass 2 is not run.
        adversarial_weight: w2, of the pair (pass 1, pass 3), at least 0; at 0 pass 3 is not run.
        cross_weight: Of the pair (pass 2, pass 3), at least 0. A preset's only counts when both passes are run.
        consistency_space: What scores are compared as. ``probability``: sigmoid under ``binary_log_loss``, softmax
            over the list's items under listwise losses. ``logit``: as they come, but centred per list under losses
            that ignore a shift of the whole list, which would otherwise be punished although neither loss nor ranking
            sees it. ``output``: as they come.
        consistency_positions: Which positions ``|A_i - B_i|`` compares: those of the orders that two passes were shown
            (``input``), or of the rankings that they gave (``output``).
        consistency_reduction: Of ``L_CS`` over a list's items, see ``consistency_loss``.
        task_loss_passes: The task loss is taken on pass 1 (``first``), or is the sum over ``every`` pass run.
        perturbed_order: What pass 3 perturbs: the ``initial`` order, or the model's ``own``.
        perturbation: How, see ``perturb``. None: ``adjacent_swap``.
        perturbation_strength: How much, see ``perturb``. None: 1.
        ranking_gradient: ``hard`` treats the model's own order as a constant: its derivative almost everywhere,
            without the jumps where two scores cross. ``softsort`` and ``neuralsort`` show a soft order instead, see
            ``soft_order``; ``|A_i - B_i|`` stays hard.
        temperature: Of the soft order, in units of the logits. None: 1.
        sinkhorn: Normalisations of the soft order. None: 0.
        straight_through: Show the hard order, with the gradient of the soft one.
        stop_gradient: The side of each pair that counts as a constant: ``none``, the ``first`` or the ``second``.
        consistency_fraction: f, in (0, 1]. Passes 2 and 3 are run on ``max(1, round(f * B))`` lists of the batch,
            drawn by their keys without looking at them, and each term is a mean over these.
        consistency_warmup: Share of all steps over which the three weights rise from 0 in a straight line, in [0, 1].
        task_loss: Name of the model's task loss, which decides the space (``config.task_loss_name``).
        seed: Of the perturbations and of the lists drawn.

    Raises:
        InputError: A value that a field does not know, or values that make no sense together.
    """

    preset: str = "scaled"
    convergence_weight: float | None = None
    adversarial_weight: float | None = None
    cross_weight: float | None = None
    consistency_space: Literal["probability", "logit", "output"] | None = None
    consistency_positions: Literal["input", "output"] | None = None
    consistency_reduction: Reduction | None = None
    task_loss_passes: Literal["first", "every"] | None = None
    perturbed_order: Literal["initial", "own"] | None = None
    perturbation: str | None = None
    perturbation_strength: float | None = None
    ranking_gradient: Literal["hard", "softsort", "neuralsort"] = "hard"
    temperature: float | None = None
    sinkhorn: int | None = None
    straight_through: bool = False
    stop_gradient: Literal["none", "first", "second"] = "none"
    consistency_fraction: float = 1.0
    consistency_warmup: float = 0.0
    task_loss: str = "binary_log_loss"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                what = "principled preset" if name == "preset" else f"{name} is"
                raise InputError(f"{what} {value!r}: expected one of {', '.join(known)}{suggestion(value, known)}")
        preset = PRESETS[self.preset]
        for name in ("convergence_weight", "adversarial_weight", "cross_weight"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, preset[name])
            elif not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: expected a finite number, at least 0")
            elif (
                name == "cross_weight"
                and self.cross_weight
                and not (self.convergence_weight and self.adversarial_weight)
            ):
                raise InputError(
                    f"cross_weight={self.cross_weight} compares pass 2 with pass 3: convergence_weight and "
                    "adversarial_weight must both be above 0"
                )
        if not (self.convergence_weight and self.adversarial_weight):
            object.__setattr__(self, "cross_weight", 0.0)

        without_a_meaning = self._without_a_meaning()
        defaults = {"perturbation": "adjacent_swap", "perturbation_strength": 1.0, "temperature": 1.0, "sinkhorn": 0}
        for name, value in {**preset, **defaults}.items():
            if getattr(self, name) is None and name not in without_a_meaning:
                object.__setattr__(self, name, value)
        for name, why in without_a_meaning.items():
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise InputError(f"{name}={getattr(self, name)!r} {why}, or leave it out")
        self._check()

    def _without_a_meaning(self) -> dict[str, str]:
        """The fields that change nothing beside the others, and why."""
        found = {}
        if self.ranking_gradient == "hard":
            why = "belongs to a soft order: set ranking_gradient to softsort or neuralsort"
            found = dict.fromkeys(("temperature", "sinkhorn", "straight_through"), why)
        if not self.adversarial_weight:
            why = "changes nothing with adversarial_weight=0, where nothing is perturbed: give a weight"
            found |= dict.fromkeys(("perturbation", "perturbation_strength", "perturbed_order"), why)
        if not self.convergence_weight and not self.adversarial_weight:
            why = "changes nothing with convergence_weight=0 and adversarial_weight=0: give a weight"
            names = ("space", "positions", "reduction", "fraction", "warmup")
            found |= dict.fromkeys([f"consistency_{name}" for name in names], why)
            found |= dict.fromkeys(("task_loss_passes", "stop_gradient"), why)
        return found

    def _check(self) -> None:
        """Refuses values out of range, and choices that contradict each other."""
        if not 0 < self.consistency_fraction <= 1:
            given = self.consistency_fraction
            raise InputError(f"consistency_fraction is {given}: expected a share above 0, at most 1")
        if not 0 <= self.consistency_warmup <= 1:
            raise InputError(f"consistency_warmup is {self.consistency_warmup}: expected a share from 0 to 1")
        if self.perturbation is not None and self.perturbation_strength is not None:
            check_perturbation(self.perturbation, self.perturbation_strength)
        if self.ranking_gradient != "hard":
            assert self.temperature is not None
            assert self.sinkhorn is not None
            check_relaxation(self.ranking_gradient, self.temperature, self.sinkhorn)
            if not self.convergence_weight and self.perturbed_order != "own":
                raise InputError(
                    f"ranking_gradient={self.ranking_gradient!r} changes nothing where the model is never shown its "
                    "own order: give convergence_weight, or perturbed_order='own'"
                )
            cut_off = self.stop_gradient == "second" and self.task_loss_passes == "first"
            if cut_off and not self.cross_weight:  # there pass 2 is the first of a pair
                raise InputError(
                    f"ranking_gradient={self.ranking_gradient!r} flows through the later pass of a pair, and "
                    "stop_gradient='second' cuts it off: choose one of them"
                )
        if self.consistency_space == "probability" and self.task_loss == "lambda_loss":
            raise InputError("lambda_loss has no probabilities: compare the scores in consistency_space='logit'")

    def at(self, *, step: int, steps: int | None = None, list_keys: Tensor | None = None) -> Callable[..., Any]:
        """The objective of one training step.

        Args:
            step: Number of the step, from 0.
            steps: Of the whole training; needed with ``consistency_warmup``.
            list_keys: int64 [B], one a list, so that a list is perturbed alike in any batch. None: its row in the
                batch. Under ``torch.compile`` give keys: the code that torch 2.13 generates for the CPU is wrong, or
                crashes, where they are made inside.
        """
        if self.consistency_warmup and not steps:
            raise InputError("with consistency_warmup the objective needs the number of steps of the whole training")
        # A tensor: torch.compile would compile anew for every other number.
        ramp = (
            torch.tensor(min(1.0, step / (self.consistency_warmup * steps)))
            if self.consistency_warmup and steps
            else 1.0
        )
        keys = None if list_keys is None else step_keys(list_keys, seed=self.seed, step=step)
        return partial(self, keys=keys, step=step if keys is None else 0, ramp=ramp)

    def settings(self) -> dict[str, Any]:
        """All choices as plain values, for logs and results."""
        return asdict(self)

    def __call__(
        self,
        score: Callable[..., Any],
        position_ids: Tensor,
        labels: Tensor,
        mask: Tensor,
        task_loss: Callable[..., Tensor],
        *,
        keys: Tensor | None = None,
        step: int = 0,
        ramp: float | Tensor = 1.0,
    ) -> dict[str, Tensor]:
        """The losses of one batch.

        Args:
            score: ``score(orders)``: orders of the B lists, [V * B, L] for V passes at once or soft orders
                [V * B, L, L] -> output with ``logits`` [V * B, L]. ``score(orders, lists)``: order n is of the list
                in row ``lists[n]`` of the batch.
            position_ids: int64 [B, L], the given order P.
            labels: [B, L]; only the task loss looks at them.
            mask: bool [B, L].
            task_loss: ``task_loss(output)`` of the B lists -> scalar; ``task_loss(output, lists)`` of these rows.
            keys: int64 [B], see ``step_keys``. None: made of the row in the batch, the seed and ``step``.
            step: See ``keys``.
            ramp: Factor on the weights.

        Returns:
            ``loss``; ``task_loss``, of pass 1; with ``task_loss_passes="every"`` ``further_task_loss``, of the passes
            after it; and, unweighted, of the terms that are on, ``convergence_loss``, ``adversarial_loss``,
            ``cross_loss``.
        """
        if not self.convergence_weight and not self.adversarial_weight:
            loss = task_loss(score(position_ids))
            return {"loss": loss, "task_loss": loss}
        size = position_ids.shape[0]
        if keys is None:
            keys = step_keys(torch.arange(size, device=position_ids.device), seed=self.seed, step=step)
        lists = self._drawn_lists(keys)
        given, real = position_ids, mask
        if lists is not None:
            given, real, keys = position_ids[lists], mask[lists], keys[lists]

        # Pass 1, and pass 3 with it where its order depends on no score.
        outputs: dict[str, Any] = {}
        shown: dict[str, Tensor] = {"first": given}
        if self.adversarial_weight and self.perturbed_order == "initial":
            shown["third"] = self._perturbed(given, real, keys)
            rows = None if lists is None else torch.cat([torch.arange(size, device=lists.device), lists])
            output, outputs["third"] = score(torch.cat([position_ids, shown["third"]]), rows).split([size, len(given)])
        else:
            output = score(position_ids)
        logits = {"first": output.logits if lists is None else output.logits[lists]}

        # Pass 2, and pass 3 with it where its order is made of the model's own.
        own = positions_from_scores(logits["first"].detach().float(), real)
        order = own if self.ranking_gradient == "hard" else self._soft_order(logits["first"], real)
        orders = {}
        if self.convergence_weight:
            shown["second"], orders["second"] = own, order
        if self.adversarial_weight and self.perturbed_order == "own":
            shown["third"] = self._perturbed(own, real, keys)
            orders["third"] = shown["third"] if order is own else moved_places(order, own, shown["third"])
        if orders:
            rows = None if lists is None else lists.repeat(len(orders))
            later = score(torch.cat(list(orders.values())), rows).split([len(given)] * len(orders))
            outputs.update(zip(orders, later, strict=True))
        logits.update({name: later.logits for name, later in outputs.items()})

        losses = {"task_loss": task_loss(output)}
        loss = losses["task_loss"]
        if self.task_loss_passes == "every":
            losses["further_task_loss"] = torch.stack([task_loss(later, lists) for later in outputs.values()]).sum()
            loss = loss + losses["further_task_loss"]
        if self.consistency_positions == "output":
            shown = {name: positions_from_scores(scores.detach().float(), real) for name, scores in logits.items()}
        scores = {name: self._comparable(values, real) for name, values in logits.items()}
        for term, a, b, weight in (
            ("convergence_loss", "first", "second", self.convergence_weight),
            ("adversarial_loss", "first", "third", self.adversarial_weight),
            ("cross_loss", "second", "third", self.cross_weight),
        ):
            if weight:
                constant = {"first": a, "second": b}.get(self.stop_gradient)
                one, other = (scores[name].detach() if name == constant else scores[name] for name in (a, b))
                assert self.consistency_reduction is not None
                losses[term] = consistency_loss(
                    one, other, shown[a], shown[b], mask=real, reduction=self.consistency_reduction
                )
                loss = loss + ramp * weight * losses[term]
        return {"loss": loss, **losses}

    def _drawn_lists(self, keys: Tensor) -> Tensor | None:
        """Rows [m] of the batch on which the later passes run; None: all."""
        drawn = max(1, round(self.consistency_fraction * len(keys)))
        if drawn >= len(keys):
            return None
        # A draw of its own, beside those of the perturbation.
        draws = keyed_uniform(keys ^ 0x5DEECE66D, 1).squeeze(-1)
        return draws.topk(drawn, largest=False, sorted=False).indices

    def _perturbed(self, positions: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
        assert self.perturbation is not None
        assert self.perturbation_strength is not None
        return keyed_perturb(positions, mask, keys, kind=self.perturbation, strength=self.perturbation_strength)

    def _soft_order(self, logits: Tensor, mask: Tensor) -> Tensor:
        assert self.temperature is not None
        assert self.sinkhorn is not None
        return soft_order(
            logits,
            mask,
            relaxation=self.ranking_gradient,
            temperature=self.temperature,
            sinkhorn=self.sinkhorn,
            straight_through=self.straight_through,
        )

    def _comparable(self, logits: Tensor, mask: Tensor) -> Tensor:
        if self.consistency_space == "probability":
            return probabilities(logits, self.task_loss, mask=mask)
        if self.consistency_space == "output" or self.task_loss == "binary_log_loss":
            return wide(logits)
        return centred(logits, mask=mask)
