"""The arms of a comparison: each model without the given order, with it, and with the principles."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.principled import DEFAULT_PRESET

LOGGED, TREES, POINTWISE = "logged order", "lambdamart", "dnn"
WITHOUT, WITH, PRINCIPLED = "without order", "with order", "with principles"


@dataclass(frozen=True)
class Arm:
    """One model trained in one way.

    Attributes:
        model: Name in the table of models, name of a user's class, or ``lambdamart``.
        kind: ``WITHOUT``, ``WITH`` or ``PRINCIPLED``.
    """

    model: str
    kind: str

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.model} {self.kind}"

    def file_name(self, seed: int) -> str:
        """Names the file of the run with a seed."""
        return f"{self.model}-{self.kind.replace(' ', '-')}-seed{seed}"


@dataclass(frozen=True)
class Model:
    """A re-ranker of a comparison.

    Attributes:
        name: Name in tables.
        config_class: Its config class.
        model_class: Its model class.
        source: Source code of the module of a user's class; None for a model of this library.
    """

    name: str
    config_class: type[Any]
    model_class: type[Any]
    source: str | None = None

    @property
    def can_ignore_order(self) -> bool:
        """Whether ``position_input="none"`` is among its options."""
        return "none" in self.config_class.position_inputs()


@dataclass(frozen=True)
class Plan:
    """The models and options of a comparison.

    Attributes:
        models: Neural networks to train.
        seeds: Number of seeds; they are 0, 1, ...
        has_order: Whether the lists come in an initial order. If not, only ``WITHOUT`` is trained.
        trees: Whether LambdaMART is trained too.
        config: Options of all configs (``hidden_size``), or of one (``prm.hidden_size``).
        training: Options of ``RerankTrainingArguments``; ``principled`` is the preset of ``PRINCIPLED``.
    """

    models: tuple[Model, ...]
    seeds: int = 3
    has_order: bool = True
    trees: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def preset(self) -> str:
        """Name of the preset of ``PRINCIPLED``."""
        return str(self.training.get("principled", DEFAULT_PRESET))

    def arms(self) -> list[Arm]:
        """Lists every arm, LambdaMART first."""
        kinds = (WITHOUT, WITH, PRINCIPLED) if self.has_order else (WITHOUT,)
        of_trees = [Arm(TREES, kind) for kind in kinds if kind != PRINCIPLED] if self.trees else []
        return of_trees + [Arm(model.name, kind) for model in self.models for kind in kinds]

    def model(self, name: str) -> Model:
        """Returns the model of this name."""
        return next(model for model in self.models if model.name == name)

    def config_options(self, arm: Arm) -> dict[str, Any]:
        """Collects the config options of a network; without the order it reads neither positions nor an earlier score.

        A model that must read an order keeps its ``position_input``: it is trained on a random order instead.
        """
        name = arm.model
        of_all = {key: value for key, value in self.config.items() if "." not in key}
        of_one = {key.split(".", 1)[1]: value for key, value in self.config.items() if key.startswith(f"{name}.")}
        decided = {}
        if arm.kind == WITHOUT:
            decided["initial_score"] = "none"
            if self.model(name).can_ignore_order:
                decided["position_input"] = "none"
        return {**of_all, **of_one, **decided}

    def training_options(self, arm: Arm) -> dict[str, Any]:
        """Collects the training options of a network; the preset and its numbers apply only with principles."""
        if arm.kind == PRINCIPLED:
            return {"principled": self.preset, **self.training}
        others = {name: value for name, value in self.training.items() if not name.startswith("principled")}
        return {"principled": "none", **others}

    def check(self) -> None:
        """Checks the plan.

        Raises:
            InputError: An option belongs to no model or cannot be compared, a name appears twice, or there are no
                seeds.
        """
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise InputError(f"two models have the same name: {', '.join(names)}; name each once")
        if self.seeds < 1:
            raise InputError(f"the number of seeds is {self.seeds}: expected at least 1")
        if self.training.get("principled") == "none":
            raise InputError(
                "principled is 'none': every model is trained without the principles anyway; choose a preset"
            )
        if self.training.get("truncate_lists"):
            raise InputError(
                "truncate_lists: a comparison evaluates whole lists: leave it out, and raise max_list_length of the "
                "schema or prepare shorter lists"
            )
        for key in self.config:
            if "." in key and key.split(".", 1)[0] not in names:
                raise InputError(
                    f"option {key!r} belongs to a model that is not compared: expected one of {', '.join(names)}"
                )


def find_models(names: Sequence[str]) -> tuple[Model, ...]:
    """Finds the DNN and the models with these names.

    Args:
        names: Names in the table of models, or ``package.module:ClassName`` for a user's class, which is imported
            from the working directory or the installed packages.

    Raises:
        InputError: There is no such model, or the class is not a ``PreTrainedReranker`` with a config class.
    """
    from hf_rerank.models.auto import reranker_classes

    found = []
    for name in dict.fromkeys((POINTWISE, *names)):
        found.append(_import_model(name) if ":" in name else Model(name, *reranker_classes(name)))
    return tuple(found)


def _import_model(path: str) -> Model:
    from hf_rerank.models.base import PreTrainedReranker
    from hf_rerank.models.config import RerankerConfig

    module_name, _, class_name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: there is no module {error.name!r}: expected package.module:ClassName, importable from "
            f"{os.getcwd()} or the installed packages"
        ) from None
    model_class = getattr(module, class_name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedReranker)):
        raise InputError(f"{path} is not a subclass of hf_rerank.PreTrainedReranker: see 'Add your own model'")
    config_class = model_class.config_class
    if not (isinstance(config_class, type) and issubclass(config_class, RerankerConfig)):
        raise InputError(
            f"{path} has no config class: set config_class to a subclass of RerankerConfig in the class, or call "
            "register_reranker at the end of the module"
        )
    return Model(class_name, config_class, model_class, inspect.getsource(module))
