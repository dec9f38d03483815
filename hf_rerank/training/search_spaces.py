"""Search spaces of options: read from strings, and sampled by a trial."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rerank.errors import InputError, suggestion
from hf_rerank.principled import PrincipledObjective
from hf_rerank.training.arguments import RerankTrainingArguments

LEARNING_RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
# Options of the config, if the model has them.
SIZES = {"hidden_size": [16, 32, 64], "embedding_dim": [8, 16, 32], "num_hidden_layers": [1, 2, 3]}


def read_spaces(
    texts: Sequence[str],
    config_class: type[Any],
    objective: PrincipledObjective,
    fixed: Mapping[str, Any],
    training: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Reads the search spaces: options of ``training`` and ``model``, and weights of the ``principles``.

    Args:
        texts: KEY=SPACE, where SPACE is A,B,C, or LOW:HIGH, or LOW:HIGH:log. If empty: learning rate, sizes of the
            model and weights of the principles, unless their values are given.
        config_class: Config class of the model.
        objective: Objective whose weights may be searched.
        fixed: Options of the config whose values are given.
        training: Training options whose values are given.

    Returns:
        Part -> option -> a list of choices, or ``{"low", "high", "log"}``.

    Raises:
        InputError: An option or a space is invalid, or an option is both given and searched.
    """
    names = {
        "training": {entry.name for entry in dataclasses.fields(RerankTrainingArguments)},
        "model": {entry.name for entry in dataclasses.fields(config_class)},
        "principles": {f"{term.name}_weight" for term in objective.terms},
    }
    spaces: dict[str, dict[str, Any]] = {part: {} for part in names}
    if not texts:
        spaces["training"] = {name: space for name, space in LEARNING_RATE.items() if name not in training}
        spaces["model"] = {
            name: choices for name, choices in SIZES.items() if name in names["model"] and name not in fixed
        }
        spaces["principles"] = spaces_of_weights(objective)
        return spaces
    for text in texts:
        key, sign, space = text.partition("=")
        part = next((part for part, known in names.items() if key in known), None)
        if not sign or part is None:
            known = sorted(set().union(*names.values()))
            raise InputError(f"--search {text}: expected KEY=SPACE with an option as KEY{suggestion(key, known)}")
        if key in fixed or key in training:
            raise InputError(f"--search {key} and a fixed value of {key} exclude each other: leave out one of them")
        spaces[part][key] = _read_space(text, space)
    return spaces


def _read_space(text: str, space: str) -> Any:
    def value(part: str) -> Any:
        try:
            return json.loads(part)
        except ValueError:
            return part

    if ":" not in space:
        choices = [value(part) for part in space.split(",")]
        if len(choices) < 2:
            raise InputError(f"--search {text}: one value is not a choice: expected A,B,C or LOW:HIGH")
        return choices
    low, high, *scale = (value(part) for part in space.split(":"))
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or scale not in ([], ["log"]) or not low < high or (scale and low <= 0):
        raise InputError(f"--search {text}: expected LOW:HIGH or LOW:HIGH:log with numbers LOW < HIGH (log: above 0)")
    return {"low": low, "high": high, "log": bool(scale)}


def spaces_of_weights(objective: PrincipledObjective) -> dict[str, Any]:
    """The weight of each term, from a thirtieth to three times its default."""
    return {
        f"{term.name}_weight": {"low": term.weight / 30, "high": term.weight * 3, "log": True}
        for term in objective.terms
    }


def suggest(trial: Any, spaces: Mapping[str, Any]) -> dict[str, Any]:
    """Lets a trial choose one value of each space; whole numbers if both ends are whole."""
    found = {}
    for name, space in spaces.items():
        if isinstance(space, list):
            found[name] = trial.suggest_categorical(name, space)
        elif isinstance(space["low"], int) and isinstance(space["high"], int):
            found[name] = trial.suggest_int(name, space["low"], space["high"], log=space["log"])
        else:
            found[name] = trial.suggest_float(name, space["low"], space["high"], log=space["log"])
    return found
