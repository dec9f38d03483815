"""Loading a model: from safetensors files only, and refused unless its weights are complete."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from hf_rerank.errors import InputError, suggestion
from hf_rerank.models.config import RerankerConfig
from hf_rerank.storage.hub_download import HUB_OPTIONS, SavedWeights, find_saved_weights

_HUB_OPTIONS = (*HUB_OPTIONS, "subfolder")
# Options of loading that are used most, for suggestions.
_LOADING_OPTIONS = (*_HUB_OPTIONS, "device", "device_map", "dtype", "attn_implementation")


def load_model(model_class: Any, load: Callable[..., Any], source: Any, *args: Any, **options: Any) -> Any:
    """Loads a model for ``PreTrainedReranker.from_pretrained``, which describes the checks, arguments and errors.

    Args:
        model_class: Class of the model.
        load: ``from_pretrained`` of transformers, bound to that class.
        source: A folder, or the id of a Hub repository.
        args: Further arguments of ``load``.
        options: Options of loading.
    """
    name = str(source)
    weights: SavedWeights | None = None
    dtype = options.get("dtype")
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"dtype is {dtype!r}: expected a torch dtype, such as 'float32'")
    if options.get("use_safetensors") is False or options.get("gguf_file"):
        raise InputError("weights are read from safetensors files only: leave use_safetensors and gguf_file out")
    if source is not None:
        hub_options = {option: options.pop(option) for option in _HUB_OPTIONS if option in options}
        subfolder = hub_options.pop("subfolder", None) or ""
        if Path(source).is_dir():
            source = Path(source) / subfolder
        elif subfolder:
            hub_options["subfolder"] = subfolder
        weights = find_saved_weights(source, variant=options.get("variant"), **hub_options)
        source = weights.folder
        options = {**options, "use_safetensors": True, "local_files_only": True}
    if options.get("output_loading_info") or options.get("ignore_mismatched_sizes"):
        loaded: Any = load(source, *args, **options)
        _finish_loading(loaded[0] if options.get("output_loading_info") else loaded, name)
        return loaded
    strict: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        if weights is not None:
            _refuse_larger_config(model_class, weights, options.get("config"))
        with _silence_load_report():
            loaded = load(source, *args, **options, **strict)
    except InputError as error:
        raise InputError(f"config.json of {name}: {error}") from None
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        raise InputError(
            f"there is no option {unknown[1]!r} of loading{suggestion(unknown[1], _LOADING_OPTIONS)}"
        ) from None
    except (OSError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{name} contains no readable weights: {reason}") from error
    model, loading = loaded
    for what, key in (("of the wrong shape", "mismatched"), ("missing", "missing"), ("unknown", "unexpected")):
        names = sorted(name if isinstance(name, str) else name[0] for name in loading[f"{key}_keys"])
        if names:
            raise InputError(
                f"weights in {name} are {what}: {', '.join(names[:5])}"
                f"{', ...' if len(names) > 5 else ''}; save or download the model again"
            )
    if weights is not None:
        _refuse_other_formats(model, weights, name)
    _finish_loading(model, name)
    return model


def _refuse_larger_config(model_class: Any, weights: SavedWeights, config: Any) -> None:
    """Refuses a config that describes a larger model than its weights, before memory is allocated for it.

    The model is built without memory (on torch's ``meta`` device), until it has more parameters than the weight
    files have bytes.

    Args:
        model_class: The model's class.
        weights: The weights to load.
        config: The caller's config. None: the one in ``config.json``.
    """
    if not isinstance(config, RerankerConfig):
        config = model_class.config_class.from_pretrained(weights.folder if config is None else config)
    thread, left = threading.get_ident(), weights.bytes

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        # The hook is global: other threads may be building models at the same time.
        if parameter is None or threading.get_ident() != thread:
            return
        left -= max(1, parameter.numel())
        if left < 0:
            raise _too_large_error(weights)

    counting = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            model_class(config)
    except (RuntimeError, OverflowError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise _too_large_error(weights) from error  # a size too large even for a tensor without memory
    finally:
        counting.remove()


@contextmanager
def _silence_load_report() -> Iterator[None]:
    """Hides the table of mismatched weights that transformers prints: here one line names them, and loading fails."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _too_large_error(weights: SavedWeights) -> InputError:
    return InputError(
        f"it describes a model of more than {weights.bytes:,} parameters, and its weight files have "
        f"{weights.bytes:,} bytes: it is not the config of these weights; save or download the model again"
    )


def _refuse_other_formats(model: nn.Module, weights: SavedWeights, name: str) -> None:
    """Refuses integers stored where the model has floats, or the reverse: casting would change their values."""
    fractions = ("F64", "F32", "F16", "BF16")
    for tensor, values in model.state_dict().items():
        found = weights.formats.get(tensor)
        if found is not None and (found in fractions) != values.is_floating_point():
            expected = ", ".join(fractions) if values.is_floating_point() else "integers"
            raise InputError(
                f"weights in {name} have the wrong dtype: {tensor} is {found}, expected {expected}; save or download "
                "the model again"
            )


def _finish_loading(model: Any, name: str) -> None:
    """Gives the model the name that the caller asked for, and copies weights to memory aligned as torch aligns it.

    Loaded weights lie in the mapped file, at any address, and on some processors a matrix product then rounds
    differently: the scores would differ in their last bits from those before saving.
    """
    model.config.name_or_path = model.name_or_path = name
    for weight in (*model.parameters(), *model.buffers()):
        if weight.data_ptr() % 64:
            weight.data = weight.data.clone()
