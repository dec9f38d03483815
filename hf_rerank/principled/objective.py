"""The objective of principled learning: passes over the same lists in several orders, and terms that compare them.

``L = L_task(R(X, P), y) + w1 L_CS(P, P') + w2 L_CS(P, P^)`` is an objective of three passes, on the given order P, the
model's own order P' and a slightly perturbed order P^, and two terms. ``hf_rerank.principled.PRESETS`` spells out this
one, its variants and the controls::

    PrincipledObjective(
        passes=(Pass("first", "given"), Pass("second", "own"), Pass("third", Perturbed("adjacent_swap", of="given"))),
        terms=(
            Term("convergence", "first", "second", weight=2.0, space="probability", positions="input",
                 reduction="weighted_mean"),
            Term("adversarial", "first", "third", weight=0.5, space="probability", positions="input",
                 reduction="weighted_mean"),
        ),
    )
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from hf_rerank.errors import InputError, suggestion
from hf_rerank.list_tensors import upcast
from hf_rerank.losses import LOSSES_WITHOUT_PROBABILITIES, TASK_LOSSES, center_scores, probabilities
from hf_rerank.principled.consistency import REDUCTIONS, Reduction, consistency_loss
from hf_rerank.principled.orders import (
    check_perturbation,
    draw_by_key,
    perturb_by_key,
    positions_from_scores,
    step_keys,
)
from hf_rerank.principled.relaxations import check_relaxation, hard_order, move_soft_order, soft_order


@dataclass(frozen=True)
class Soft:
    """The model's own order with a gradient: a soft order of the first pass's scores.

    Args:
        relaxation: ``softsort`` or ``neuralsort``.
        temperature: Temperature in units of the scores; as it falls to 0 the order becomes hard.
        sinkhorn: Number of row and column normalizations; see ``hf_rerank.principled.soft_order``.
        straight_through: Whether to pass the hard order to the model, with the gradient of the soft one.
    """

    relaxation: Literal["softsort", "neuralsort"] = "softsort"
    temperature: float = 1.0
    sinkhorn: int = 0
    straight_through: bool = False

    def __post_init__(self) -> None:
        check_relaxation(self.relaxation, self.temperature, self.sinkhorn)


@dataclass(frozen=True)
class Perturbed:
    """An order with a small random change.

    Args:
        kind: ``adjacent_swap``, ``random_swap``, ``window_shuffle``, ``reverse_window`` or ``score_noise``; see
            ``hf_rerank.principled.perturb``.
        of: The order that is changed: ``given``, ``own``, ``Soft(...)`` or another ``Perturbed(...)``. Perturbing the
            model's own order does not require a pass on that order.
        strength: Number of swaps, width of the window minus 1, or standard deviation of the noise.
    """

    kind: str = "adjacent_swap"
    of: Order = "given"
    strength: float = 1

    def __post_init__(self) -> None:
        check_perturbation(self.kind, self.strength)
        _check_order(self.of)


# ``given``: the order of the list. ``own``: the ranking by the first pass's scores.
Order: TypeAlias = 'Literal["given", "own"] | Soft | Perturbed'


@dataclass(frozen=True)
class Pass:
    """One scoring of the lists.

    Args:
        name: Name by which terms and ``task_loss_on`` refer to it.
        order: Order in which the items are given: ``given``, ``own``, ``Soft(...)`` or ``Perturbed(...)``.
        dropout: ``shared``: the dropout masks that the passes of a step share. ``fresh``: separate masks.
    """

    name: str
    order: Order = "given"
    dropout: Literal["shared", "fresh"] = "shared"

    def __post_init__(self) -> None:
        _check_order(self.order)
        _check_choice("dropout of a pass", self.dropout, ("shared", "fresh"))


@dataclass(frozen=True)
class Term:
    """A consistency loss between two passes: ``weight * L_CS``; see ``consistency_loss``.

    Args:
        name: Name under which it is logged, with ``_loss`` appended.
        first: Name of a pass.
        second: Name of another pass.
        weight: Weight of the term, at least 0.
        space: Scale on which scores are compared. ``probability``: sigmoid under ``binary_log_loss``, softmax over the
            list's items under listwise losses. ``logit``: raw scores, but centred per list under shift-invariant
            losses; otherwise a shift of the whole list would be penalized, although neither loss nor ranking depends
            on it. ``output``: raw scores.
        positions: Which positions ``|A_i - B_i|`` compares: those of the orders that the two passes were given
            (``input``), or of the rankings that they produced (``output``). None: every item has the weight 1.
        reduction: Reduction over a list's items, see ``consistency_loss``.
        stop_gradient: The side treated as a constant: ``first``, ``second`` or None.
    """

    name: str
    first: str
    second: str
    weight: float = 1.0
    space: Literal["probability", "logit", "output"] = "output"
    positions: Literal["input", "output"] | None = "output"
    reduction: Reduction = "mean"
    stop_gradient: Literal["first", "second"] | None = None

    def __post_init__(self) -> None:
        if self.name in ("task", "further_task"):
            raise InputError(f"a term is named {self.name!r}, as the task losses are in the log: choose another name")
        _check_choice(f"space of the term {self.name!r}", self.space, ("probability", "logit", "output"))
        _check_choice(f"positions of the term {self.name!r}", self.positions, ("input", "output", None))
        _check_choice(f"reduction of the term {self.name!r}", self.reduction, REDUCTIONS)
        _check_choice(f"stop_gradient of the term {self.name!r}", self.stop_gradient, ("first", "second", None))
        if not (_is_number(self.weight) and 0 <= self.weight < math.inf):
            raise InputError(f"weight of the term {self.name!r} is {self.weight!r}: expected a number of at least 0")
        if self.first == self.second:
            raise InputError(f"the term {self.name!r} compares {self.first!r} with itself: name two passes")


@dataclass(frozen=True)
class PrincipledObjective:
    """Passes, the terms that compare them, and the task loss.

    Pass ``at(...)`` of a step as ``objective`` to a model's ``forward``. Passes whose order does not depend on scores
    run in one encoder call with the first, the others in a second; fresh dropout masks need a separate call.

    Args:
        passes: The first pass scores the given order with the shared dropout masks; its scores define ``own``.
        terms: Consistency losses between passes; may be empty.
        task_loss_on: Names of the passes whose task losses are summed.
        task_loss: What the model trains on: a name in ``hf_rerank.losses.TASK_LOSSES``, which also decides what
            ``space`` means; or ``own``, the loss of the model's paper. None: that of the model's config. The trainer
            resolves it with ``for_task_loss``; outside the trainer, None means ``binary_log_loss``.
        fraction: Fraction f, in (0, 1]. The passes after the first run on ``max(1, round(f * B))`` lists of the batch,
            drawn by their keys independently of their content, and each term is a mean over these.
        warmup: Fraction of all steps over which the weights of the terms rise linearly from 0, in [0, 1].
        seed: Seed of the perturbations and of the draws of lists.

    Raises:
        InputError: A value out of range, two passes or terms with the same name, a name that is not a pass, an unused
            pass, or a term that the task loss does not allow.
    """

    passes: tuple[Pass, ...]
    terms: tuple[Term, ...] = ()
    task_loss_on: tuple[str, ...] = ("first",)
    task_loss: str | None = None
    fraction: float = 1.0
    warmup: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for what in ("passes", "terms", "task_loss_on"):
            object.__setattr__(self, what, tuple(getattr(self, what)))
        if not self.passes or self.passes[0].order != "given" or self.passes[0].dropout != "shared":
            raise InputError("the first pass must score the given order with shared dropout: Pass('first', 'given')")
        names = [entry.name for entry in self.passes]
        for what, found in (("passes", names), ("terms", [term.name for term in self.terms])):
            repeated = next((name for name in found if found.count(name) > 1), None)
            if repeated is not None:
                raise InputError(f"two {what} are named {repeated!r}: give each its own name")
        if not self.task_loss_on:
            raise InputError("task_loss_on is empty: name at least one pass")
        used = {names[0], *self.task_loss_on}
        for term in self.terms:
            used |= {term.first, term.second}
        for name in used - set(names):
            raise InputError(
                f"there is no pass {name!r}: the passes are {', '.join(names)}{suggestion(str(name), names)}"
            )
        for name in names:
            if name not in used:
                raise InputError(f"the pass {name!r} is in no term and not in task_loss_on: leave it out")
        known = ("own", *TASK_LOSSES, None)
        _check_choice("task_loss of the objective", self.task_loss, known)
        if not (_is_number(self.fraction) and 0 < self.fraction <= 1):
            raise InputError(f"fraction is {self.fraction!r}: expected a number above 0, at most 1")
        if not (_is_number(self.warmup) and 0 <= self.warmup <= 1):
            raise InputError(f"warmup is {self.warmup!r}: expected a fraction of the steps, from 0 to 1")
        if not (_is_number(self.seed) and isinstance(self.seed, Integral)):
            raise InputError(f"seed is {self.seed!r}: expected a whole number")
        if self.task_loss in LOSSES_WITHOUT_PROBABILITIES and any(term.space == "probability" for term in self.terms):
            raise InputError(f"{self.task_loss} has no probabilities: compare the scores with space='logit'")

    def for_task_loss(self, name: str) -> PrincipledObjective:
        """The objective for a model that trains on this task loss.

        Terms that compare probabilities compare logits instead if the loss has no probabilities
        (``hf_rerank.losses.LOSSES_WITHOUT_PROBABILITIES``, such as ``lambda_loss``).

        Args:
            name: A name in ``hf_rerank.losses.TASK_LOSSES``.
        """
        terms = self.terms
        if name in LOSSES_WITHOUT_PROBABILITIES:
            terms = tuple(replace(term, space="logit") if term.space == "probability" else term for term in terms)
        return replace(self, task_loss=name, terms=terms)

    def at(
        self,
        *,
        step: int,
        steps: int | None = None,
        list_keys: Tensor | None = None,
        factors: Mapping[str, float | Tensor] | None = None,
    ) -> Callable[..., dict[str, Tensor]]:
        """The objective of one training step.

        Args:
            step: Number of the step, from 0.
            steps: Number of steps of the whole training; needed with ``warmup``.
            list_keys: int64 [B], one per list, so that a list is perturbed in the same way in any batch. None: its row
                in the batch. Pass keys under ``torch.compile``: if they are made inside, the code that torch 2.13
                generates for the CPU is wrong, or crashes.
            factors: Name of a term -> a factor on its weight in this step; scalar tensors on the device of the
                lists, or numbers. None: 1.

        Raises:
            InputError: ``steps`` is needed and missing, or a factor names an unknown term.
        """
        names = [term.name for term in self.terms]
        for name in factors or {}:
            if name not in names:
                raise InputError(
                    f"there is no term {name!r} to give a factor: the terms are {', '.join(names) or 'none'}"
                    f"{suggestion(name, names)}"
                )
        if self.warmup and not steps:
            raise InputError("with warmup the objective needs the number of steps of the whole training")
        ramp: float | Tensor = 1.0
        if self.warmup and steps:
            value = min(1.0, step / (self.warmup * steps))
            # A tensor on the device: torch.compile would recompile for every new number.
            ramp = value if list_keys is None else torch.full((), value, device=list_keys.device)
        keys = None if list_keys is None else step_keys(list_keys, seed=self.seed, step=step)
        return partial(self, keys=keys, step=step if keys is None else 0, ramp=ramp, factors=dict(factors or {}))

    def settings(self) -> dict[str, Any]:
        """All choices as plain values, for logs and results."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        plain["passes"] = [
            {"name": entry.name, "order": _describe_order(entry.order), "dropout": entry.dropout}
            for entry in self.passes
        ]
        return {**plain, "terms": [asdict(term) for term in self.terms], "task_loss_on": list(self.task_loss_on)}

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
        factors: Mapping[str, float | Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one batch.

        Args:
            score: See ``PreTrainedReranker.forward``.
            position_ids: int64 [B, L], the given order P.
            labels: [B, L]; read only by the task loss.
            mask: bool [B, L].
            task_loss: ``task_loss(output)`` of the B lists -> scalar; ``task_loss(output, lists)`` of these rows.
            keys: int64 [B], see ``step_keys``. None: derived from the row in the batch, the seed and ``step``.
            step: See ``keys``.
            ramp: Factor on the weights of all terms.
            factors: See ``at``.

        Returns:
            ``loss``; ``task_loss``, of the first pass; ``further_task_loss``, the sum over other passes with a task
            loss, if there are any; and each term, unweighted, under its name with ``_loss`` appended.
        """
        if len(self.passes) == 1:
            loss = task_loss(score(position_ids))
            return {"loss": loss, "task_loss": loss}
        if keys is None:
            rows = torch.arange(len(position_ids), device=position_ids.device)
            keys = step_keys(rows, seed=self.seed, step=step)
        run = _Run(self, score, position_ids, mask, keys)
        run.score_passes()
        return self._losses(run, task_loss, ramp, factors or {})

    def _losses(
        self,
        run: _Run,
        task_loss: Callable[..., Tensor],
        ramp: float | Tensor,
        factors: Mapping[str, float | Tensor],
    ) -> dict[str, Tensor]:
        first = self.passes[0].name
        losses = {"task_loss": task_loss(run.outputs[first])}
        further = [task_loss(run.outputs[name], run.lists) for name in self.task_loss_on if name != first]
        total: Any = losses["task_loss"] if first in self.task_loss_on else 0.0
        if further:
            losses["further_task_loss"] = torch.stack(further).sum()
            total = total + losses["further_task_loss"]
        for term in self.terms:
            one, other = (self._convert_scores(run, name, term.space) for name in (term.first, term.second))
            if term.stop_gradient == "first":
                one = one.detach()
            elif term.stop_gradient == "second":
                other = other.detach()
            compared = [run.positions(name, term.positions) for name in (term.first, term.second)]
            value = consistency_loss(one, other, *compared, mask=run.real, reduction=term.reduction)
            losses[f"{term.name}_loss"] = value
            total = total + ramp * term.weight * factors.get(term.name, 1.0) * value
        return {"loss": total, **losses}

    def _convert_scores(self, run: _Run, name: str, space: str) -> Tensor:
        task_loss = self.task_loss or "binary_log_loss"
        if space == "probability":
            return probabilities(run.logits[name], task_loss, mask=run.real)
        if space == "output" or task_loss == "binary_log_loss":
            return upcast(run.logits[name])
        return center_scores(run.logits[name], mask=run.real)


class _Run:
    """The passes of one batch. The later ones, and the terms, run on the lists drawn by ``fraction``.

    Attributes:
        lists: Rows [m] of the batch that were drawn; None: all.
        real: bool [m, L], their mask.
        outputs: Name of a pass -> its output, for all lists in the first pass and for those drawn in the others.
        logits: Name of a pass -> [m, L].
    """

    def __init__(
        self, objective: PrincipledObjective, score: Callable[..., Any], positions: Tensor, mask: Tensor, keys: Tensor
    ) -> None:
        self.objective, self.score, self.all_positions = objective, score, positions
        self.lists = _draw_lists(keys, objective.fraction)
        self.given, self.real, self.keys = positions, mask, keys
        if self.lists is not None:
            self.given, self.real, self.keys = positions[self.lists], mask[self.lists], keys[self.lists]
        self.outputs: dict[str, Any] = {}
        self.logits: dict[str, Tensor] = {}
        self._input: dict[str, Tensor] = {}
        self._output: dict[str, Tensor] = {}
        self._own: Tensor | None = None
        self._perturbed = 0

    def score_passes(self) -> None:
        first, *others = self.objective.passes
        groups: dict[tuple[bool, str], list[Pass]] = {}
        for entry in others:
            groups.setdefault((_needs_scores(entry.order), entry.dropout), []).append(entry)
        size, many = len(self.all_positions), len(self.given)

        # The first pass, together with those that do not depend on scores.
        together = groups.pop((False, "shared"), [])
        orders = self._resolve_orders(together)
        rows = None
        if orders and self.lists is not None:
            everyone = torch.arange(size, device=self.lists.device)
            rows = torch.cat([everyone, *[self.lists] * len(orders)])
        output = self.score(torch.cat([self.all_positions, *orders]) if orders else self.all_positions, rows)
        outputs = output.split([size, *[many] * len(orders)]) if orders else [output]
        self._input[first.name] = self.given
        self.outputs[first.name] = outputs[0]
        self.logits[first.name] = outputs[0].logits if self.lists is None else outputs[0].logits[self.lists]
        self._keep(together, outputs[1:])

        for (_, dropout), entries in sorted(groups.items()):
            orders = self._resolve_orders(entries)
            rows = None if self.lists is None else self.lists.repeat(len(orders))
            options = {"fresh_dropout": True} if dropout == "fresh" else {}
            output = self.score(torch.cat(orders), rows, **options)
            self._keep(entries, output.split([many] * len(orders)))

    def positions(self, name: str, kind: str | None) -> Tensor | None:
        """The positions that a pass was given (``input``) or its ranking (``output``), [m, L]; None for no weights."""
        if kind is None:
            return None
        if kind == "input":
            return self._input[name]
        if name not in self._output:
            self._output[name] = self._rank(name)
        return self._output[name]

    def _rank(self, name: str) -> Tensor:
        return positions_from_scores(self.logits[name].detach().float(), self.real)

    def _keep(self, entries: list[Pass], outputs: Any) -> None:
        for entry, output in zip(entries, outputs, strict=True):
            self.outputs[entry.name], self.logits[entry.name] = output, output.logits

    def _resolve_orders(self, entries: list[Pass]) -> list[Tensor]:
        """Resolves the orders of passes; if one is soft, all become soft orders."""
        orders = []
        for entry in entries:
            self._input[entry.name], order = self._resolve(entry.order)
            orders.append(order)
        if any(order.is_floating_point() for order in orders):
            return [order if order.is_floating_point() else hard_order(order) for order in orders]
        return orders

    def _resolve(self, order: Order) -> tuple[Tensor, Tensor]:
        """Resolves an order to its positions [m, L] and the input of the model: these, or a soft order [m, L, L]."""
        if order == "given":
            return self.given, self.given
        if isinstance(order, Perturbed):
            positions, base = self._resolve(order.of)
            # Perturbed orders draw independently of each other; the first uses the keys unchanged.
            keys = self.keys ^ (self._perturbed * 0x2127599BF4325C37 % (1 << 63))
            self._perturbed += 1
            moved = perturb_by_key(positions, self.real, keys, kind=order.kind, strength=order.strength)
            return moved, moved if base is positions else move_soft_order(base, positions, moved)
        first = self.objective.passes[0].name
        if self._own is None:
            self._own = self._rank(first)
        if not isinstance(order, Soft):
            return self._own, self._own
        return self._own, soft_order(
            self.logits[first],
            self.real,
            relaxation=order.relaxation,
            temperature=order.temperature,
            sinkhorn=order.sinkhorn,
            straight_through=order.straight_through,
        )


def _draw_lists(keys: Tensor, fraction: float) -> Tensor | None:
    """Rows [m] of the batch on which the later passes run; None: all."""
    drawn = max(1, round(fraction * len(keys)))
    if drawn >= len(keys):
        return None
    # A separate draw, independent of those of the perturbations.
    draws = draw_by_key(keys ^ 0x5DEECE66D, 1).squeeze(-1)
    return draws.topk(drawn, largest=False, sorted=False).indices


def _needs_scores(order: Order) -> bool:
    return _needs_scores(order.of) if isinstance(order, Perturbed) else order != "given"


def _describe_order(order: Any) -> Any:
    if not is_dataclass(order):
        return order
    plain = {entry.name: getattr(order, entry.name) for entry in fields(order)}
    if "of" in plain:
        plain["of"] = _describe_order(plain["of"])
    return {type(order).__name__.lower(): plain}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_order(order: Any) -> None:
    if not isinstance(order, Soft | Perturbed):
        _check_choice("the order of a pass", order, ("given", "own"), "Perturbed(...) or Soft(...)")


def _check_choice(what: str, value: Any, known: tuple[Any, ...], more: str = "") -> None:
    if value in known:
        return
    expected = ", ".join([*map(repr, known), *([more] if more else [])])
    names = [name for name in known if isinstance(name, str)]
    raise InputError(f"{what} is {value!r}: expected one of {expected}{suggestion(str(value), names)}")
