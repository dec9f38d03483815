"""Refuses models with peft adapters (LoRA and the like), without importing peft."""

from __future__ import annotations

from typing import Any

from hf_rerank.errors import InputError


def refuse_adapters(model: Any) -> None:
    """Refuses a ``PeftModel``, and a model into which peft has inserted layers.

    Saving would write the adapter alone, which neither ``from_pretrained`` nor resuming could load.

    Args:
        model: The model to train.

    Raises:
        InputError: The model has an adapter.
    """
    if _is_from_peft(model):
        found = f"a {type(model).__name__} of peft"
    elif any(map(_is_from_peft, model.modules() if hasattr(model, "modules") else ())):
        found = f"a {type(model).__name__} with layers of peft"
    else:
        return
    raise InputError(
        f"model is {found}, whose adapter could not be loaded or resumed: give the whole model, "
        "model.merge_and_unload(); to train only some parameters, use freeze()"
    )


def _is_from_peft(module: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)
