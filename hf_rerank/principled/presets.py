"""The named objectives: presets of principled learning, and the controls of its experiments, each as a literal.

Which one to choose:

- ``augmented`` (default): the task loss on every pass, and terms normalized per list, so that its weights suit
  lists of any length.
- ``scaled``: the same terms, with the task loss on the given order alone, as in the paper's text. It changes less.
- ``paper``: the formula as printed. Its P1 term grows with the square of the list's length: a strong pull towards
  stable rankings in long lists. Use it to reproduce the paper.
- ``reference``: the authors' public code: the task loss on every pass, terms on raw outputs, and a third term between
  the model's own order and its perturbation. Use it to reproduce the authors' results.
- ``none``: the task loss of the given order alone; the baseline, and the choice if the order holds information that
  the features lack.
- ``r_drop``, ``augmentation``: controls that separate the principles from regularization by dropout, and from training
  on more orders.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hf_rerank.errors import InputError, suggestion
from hf_rerank.principled.objective import Pass, Perturbed, PrincipledObjective, Term

_GIVEN = Pass("first", "given")
_OWN = Pass("second", "own")
_SWAPPED = Pass("third", Perturbed("adjacent_swap", of="given"))
# A mean squared difference of probabilities over the items that moved: independent of the list's length.
_scaled = partial(Term, space="probability", positions="input", reduction="weighted_mean")
# The formula as printed: its sum grows with the square of the list's length in P1 and not at all in P2.
_paper = partial(Term, weight=1.0, space="probability", positions="input", reduction="sum")
_reference = partial(Term, weight=1.0, space="output", positions="output", reduction="mean")

# In clicks above `none` and `scaled` in every initial order of simulated lists with 30 items (scripts/experiments).
DEFAULT_PRESET = "augmented"
PRESETS: dict[str, PrincipledObjective] = {
    # No principles: the task loss of the given order.
    "none": PrincipledObjective(passes=(_GIVEN,)),
    # The paper's loss with normalized terms.
    "scaled": PrincipledObjective(
        passes=(_GIVEN, _OWN, _SWAPPED),
        terms=(
            _scaled("convergence", "first", "second", weight=2.0),
            _scaled("adversarial", "first", "third", weight=0.5),
        ),
    ),
    # The library's own: `scaled`, which also learns from the clicks in the model's own and in swapped orders.
    "augmented": PrincipledObjective(
        passes=(_GIVEN, _OWN, _SWAPPED),
        terms=(
            _scaled("convergence", "first", "second", weight=6.0),
            _scaled("adversarial", "first", "third", weight=1.5),
        ),
        task_loss_on=("first", "second", "third"),
    ),
    # The text of the paper, taken literally.
    "paper": PrincipledObjective(
        passes=(_GIVEN, _OWN, _SWAPPED),
        terms=(_paper("convergence", "first", "second"), _paper("adversarial", "first", "third")),
    ),
    # The authors' public code.
    "reference": PrincipledObjective(
        passes=(_GIVEN, _OWN, Pass("third", Perturbed("adjacent_swap", of="own"))),
        terms=(
            _reference("convergence", "first", "second"),
            _reference("adversarial", "first", "third"),
            _reference("cross", "second", "third"),
        ),
        task_loss_on=("first", "second", "third"),
        task_loss="own",
    ),
    # Controls. R-Drop (Liang et al. 2021): two passes on the same order with separate dropout masks.
    "r_drop": PrincipledObjective(
        passes=(_GIVEN, Pass("again", "given", dropout="fresh")),
        terms=(Term("r_drop", "first", "again", weight=20.0, space="probability", positions=None),),
    ),
    # The task loss on the three orders of `scaled`, without consistency.
    "augmentation": PrincipledObjective(passes=(_GIVEN, _OWN, _SWAPPED), task_loss_on=("first", "second", "third")),
}


def preset_objective(
    name: str,
    *,
    fraction: float = 1.0,
    warmup: float = 0.0,
    perturbation: str | None = None,
    seed: int = 0,
    **weights: float,
) -> PrincipledObjective:
    """Builds the objective of a preset, with some of its numbers changed.

    Args:
        name: A key of ``PRESETS``: ``augmented``, ``scaled``, ``paper``, ``reference``, ``none``, ``r_drop``,
            ``augmentation``.
        fraction: Fraction of each batch's lists on which the later passes run, in (0, 1].
        warmup: Fraction of all steps over which the weights of the terms rise linearly from 0, in [0, 1].
        perturbation: Kind of the perturbed pass, see ``hf_rerank.principled.perturb``. None: the preset's.
        seed: Seed of the perturbations and of the draws of lists.
        weights: ``<term>_weight`` for each term of the preset: ``convergence_weight`` (w1), ``adversarial_weight``
            (w2), ``cross_weight``, ``r_drop_weight``. 0 leaves out the term and, if it compares with the first pass,
            the other pass too.

    Raises:
        InputError: There is no such preset, option or value.
    """
    if name not in PRESETS:
        raise InputError(
            f"principled is {name!r}: expected one of {', '.join(PRESETS)}{suggestion(name, PRESETS)}; or give the "
            "trainer an objective of your own"
        )
    objective = PRESETS[name]
    known = [f"{term.name}_weight" for term in objective.terms]
    for key, weight in weights.items():
        if key not in known:
            options = [*known, "fraction", "warmup", "perturbation", "seed"]
            raise InputError(
                f"principled={name!r} has no option {key!r}: expected {', '.join(options)}{suggestion(key, options)}"
            )
        term = next((term for term in objective.terms if f"{term.name}_weight" == key), None)
        if term is None:  # its pass was left out with another term
            continue
        objective = _set_weight(objective, term, weight)
    if perturbation is not None:
        if not any(isinstance(entry.order, Perturbed) for entry in objective.passes):
            raise InputError(f"perturbation={perturbation!r}: principled={name!r} has no pass that is perturbed")
        objective = replace(
            objective,
            passes=tuple(
                replace(entry, order=replace(entry.order, kind=perturbation))
                if isinstance(entry.order, Perturbed)
                else entry
                for entry in objective.passes
            ),
        )
    if len(objective.passes) == 1 and (fraction != 1.0 or warmup):
        raise InputError(
            f"fraction and warmup change nothing with principled={name!r} and these weights, where only one pass is "
            "run: leave them out"
        )
    return replace(objective, fraction=fraction, warmup=warmup, seed=seed)


def _set_weight(objective: PrincipledObjective, term: Term, weight: float) -> PrincipledObjective:
    changed = replace(term, weight=weight)
    if weight:
        return replace(objective, terms=tuple(changed if other is term else other for other in objective.terms))
    # If a term compares with the first pass, its other pass is run only for this term.
    dropped = term.second if term.first == objective.passes[0].name else None
    return replace(
        objective,
        passes=tuple(entry for entry in objective.passes if entry.name != dropped),
        terms=tuple(
            other for other in objective.terms if other is not term and dropped not in (other.first, other.second)
        ),
        task_loss_on=tuple(name for name in objective.task_loss_on if name != dropped),
    )
