"""The table of re-rankers, and loading by the model type of a checkpoint.

A new re-ranker needs its own file, one row here, and a test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from hf_rerank.errors import InputError, suggestion
from hf_rerank.models.base import PreTrainedReranker, RerankerConfig
from hf_rerank.models.dlcm import DLCMConfig, DLCMForReranking
from hf_rerank.models.dnn import DNNConfig, DNNForReranking
from hf_rerank.models.midnn import MiDNNConfig, MiDNNForReranking
from hf_rerank.models.pear import PEARConfig, PEARForReranking
from hf_rerank.models.prm import PRMConfig, PRMForReranking
from hf_rerank.models.raise_ import RAISEConfig, RAISEForReranking
from hf_rerank.models.setrank import SetRankConfig, SetRankForReranking
from hf_rerank.processing import ListProcessor
from hf_rerank.storage import read_json
from hf_rerank.storage.hub_download import HUB_OPTIONS, REMEDY, fetch_verified_folder

# name -> (config, model); the model type of a checkpoint is "rerank_" and the name.
RERANKERS: dict[str, tuple[type[RerankerConfig], type[PreTrainedReranker]]] = {
    "dnn": (DNNConfig, DNNForReranking),
    "dlcm": (DLCMConfig, DLCMForReranking),
    "midnn": (MiDNNConfig, MiDNNForReranking),
    "prm": (PRMConfig, PRMForReranking),
    "setrank": (SetRankConfig, SetRankForReranking),
    "pear": (PEARConfig, PEARForReranking),
    "raise": (RAISEConfig, RAISEForReranking),
}


def register_reranker(name: str, config: type[RerankerConfig], model: type[PreTrainedReranker]) -> None:
    """Adds your own re-ranker to the table, and to ``AutoConfig``, ``AutoModel``, ``AutoFeatureExtractor``.

    A checkpoint contains no code: before loading one, import the module that calls this function.

    Args:
        name: Its key in the table; ``config.model_type`` must be ``"rerank_"`` followed by this name.
        config: Its config class.
        model: Its model class.

    Raises:
        InputError: Another re-ranker has this name, or the config's model type does not match it.
    """
    if RERANKERS.get(name) == (config, model):
        return
    if name in RERANKERS:
        raise InputError(f"there is a re-ranker {name!r} already, {RERANKERS[name][1].__name__}: choose another name")
    if config.model_type != f"rerank_{name}":
        raise InputError(f"{config.__name__}.model_type is {config.model_type!r}: expected 'rerank_{name}'")
    RERANKERS[name] = (config, model)
    # transformers takes it from the annotation of ``config``, a string under postponed evaluation of annotations.
    model.config_class = config
    _register(config, model)


def _register(config: type[RerankerConfig], model: type[PreTrainedReranker]) -> None:
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoFeatureExtractor.register(config, ListProcessor)


for _config, _model in RERANKERS.values():
    _register(_config, _model)


def reranker_classes(name: str) -> tuple[type[RerankerConfig], type[PreTrainedReranker]]:
    """Config and model of the re-ranker ``name``, such as ``"prm"``.

    Raises:
        InputError: No re-ranker has that name.
    """
    if name not in RERANKERS:
        raise InputError(
            f"unknown re-ranker {name!r}: expected one of {', '.join(RERANKERS)}{suggestion(name, RERANKERS)}"
        )
    return RERANKERS[name]


class AutoReranker:
    """Loads whichever re-ranker a checkpoint contains."""

    @staticmethod
    def from_pretrained(source: str | Path, **options: Any) -> PreTrainedReranker:
        """Loads the model of a folder or Hub repository.

        Args:
            source: A folder that ``save_pretrained`` wrote, or the id of a Hub repository.
            options: Options of ``PreTrainedModel.from_pretrained`` (``revision``, ``dtype``, ...).

        Raises:
            InputError: There is no such checkpoint, or its model is not a re-ranker of this library.
        """
        hub_options = {name: options[name] for name in HUB_OPTIONS if name in options}
        config_file = fetch_verified_folder(source, ["config.json"], **hub_options) / "config.json"
        plain = read_json(config_file, REMEDY)
        if "model_type" not in plain:
            raise InputError(f"{config_file} is not a model config: it has no model_type; {REMEDY}")
        model_type = plain["model_type"]
        name = str(model_type).removeprefix("rerank_")
        if name not in RERANKERS or not str(model_type).startswith("rerank_"):
            known = ", ".join(f"rerank_{known}" for known in RERANKERS)
            raise InputError(f"{source} holds a model of type {model_type!r}: expected one of {known}")
        return RERANKERS[name][1].from_pretrained(source, **options)

    @staticmethod
    def from_config(config: RerankerConfig) -> PreTrainedReranker:
        """A new model with random weights."""
        return reranker_classes(config.model_type.removeprefix("rerank_"))[1](config)
