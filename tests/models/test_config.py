"""Configs: validation, creation from a schema, and saving to a file."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import get_args

import pyarrow as pa
import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_rerank.errors import InputError
from hf_rerank.models import auto
from hf_rerank.models.auto import RERANKERS, AutoReranker, reranker_classes
from hf_rerank.models.config import RerankerConfig
from hf_rerank.models.dlcm import DLCMConfig
from hf_rerank.models.dnn import DNNConfig
from hf_rerank.models.midnn import MiDNNConfig
from hf_rerank.models.pear import PEARConfig
from hf_rerank.models.prm import PRMConfig, PRMForReranking
from hf_rerank.models.raise_ import RAISEConfig
from hf_rerank.models.setrank import SetRankConfig
from hf_rerank.processing import ListProcessor
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector

every_model = pytest.mark.parametrize("name", RERANKERS)

SCHEMA = ListSchema(
    items=[
        Categorical("item", size=50),
        Vector("text", dim=3),
        Dense("price", scale="log", missing="indicator"),
        Categorical("shop", hash_size=16),
        Dense("age"),
        Vector("image", dim=2),
    ],
    user=[Categorical("gender"), Dense("minutes")],
    history=[Categorical("seen", shares="item"), Dense("ago", missing="indicator"), Categorical("action")],
    max_list_length=6,
    max_history_length=4,
)
LISTS = pa.Table.from_pylist(
    [
        {
            "item": [1, 2, 1, 2],
            "text": [[0.0, 1.0, 2.0]] * 4,
            "price": [1.0, None, 2.0, 3.0],
            "shop": [7, 8, 7, 8],
            "age": [1.0, 2.0, 3.0, 4.0],
            "image": [[0.0, 1.0]] * 4,
            "gender": gender,
            "minutes": 3.0,
            "seen": [1, 2],
            "ago": [1.0, None],
            "action": ["buy", "buy"],
            "click": [0, 1, 0, 0],
        }
        for gender in (0, 1, 0, 1)
    ]
)


@pytest.fixture(scope="module")
def schema():
    return ListProcessor.from_lists(LISTS, schema=SCHEMA).schema


@every_model
def test_config_sizes_follow_the_schema(name, schema):
    """Tables: padding, unknown, then the values; a missing-value indicator is an additional number."""
    config = RERANKERS[name][0].for_schema(schema)
    expected = {
        "item_vocab_sizes": [50, 16],
        "num_item_dense": 2 + 1,
        "item_vector_dim": 3 + 2,
        "user_vocab_sizes": [2 + 2],
        "num_user_dense": 1,
        "history_vocab_sizes": [50, 2 + 1],
        "history_shared_tables": [0, -1],
        "num_history_dense": 2,
        "max_list_length": 6,
        "max_history_length": 4,
        "schema_fingerprint": schema.fingerprint,
    }
    assert {field: getattr(config, field) for field in expected} == expected
    assert config.unknown_rate is None
    assert config.task_loss == config.task_loss_name == "binary_log_loss"
    config = RERANKERS[name][0].for_schema(schema, embedding_dim=5, max_list_length=9)
    assert (config.embedding_dim, config.max_list_length) == (5, 9)


@every_model
def test_a_model_for_a_schema_accepts_its_tensors(name, schema):
    processor = ListProcessor.from_lists(LISTS, schema=SCHEMA)
    model = AutoReranker.from_config(RERANKERS[name][0].for_schema(processor.schema))
    assert type(model) is RERANKERS[name][1]
    assert model.config.schema_fingerprint == processor.schema.fingerprint
    output = model(**processor(LISTS))
    assert output.logits.shape == (4, 4)
    assert output.loss.isfinite()


def test_schema_fingerprints_of_different_schemas_differ(schema):
    other = ListProcessor.from_lists(LISTS.slice(0, 1), schema=SCHEMA).schema
    assert DNNConfig.for_schema(other).schema_fingerprint != DNNConfig.for_schema(schema).schema_fingerprint


@every_model
@pytest.mark.parametrize("preset", ["paper", "librerank-ad", "librerank-prm"])
def test_every_preset_builds_a_model(name, preset, schema):
    config, model = RERANKERS[name]
    assert model(config.preset(preset, schema)).num_parameters() > 0
    chosen = config.presets[preset]
    assert {field: getattr(config.preset(preset, schema), field) for field in chosen} == chosen
    assert config.preset(preset, schema, embedding_dim=3).embedding_dim == 3
    with pytest.raises(InputError, match=rf"no preset 'papr': expected one of .*{preset}.*did you mean 'paper'"):
        config.preset("papr", schema)


def test_registering_a_taken_or_mismatched_name_is_rejected(monkeypatch):
    monkeypatch.setattr(auto, "RERANKERS", dict(RERANKERS))
    prm, dnn = RERANKERS["prm"], RERANKERS["dnn"]
    auto.register_reranker("prm", *prm)  # registering it again changes nothing
    with pytest.raises(InputError, match="there is a re-ranker 'prm' already, PRMForReranking: choose another name"):
        auto.register_reranker("prm", *dnn)
    with pytest.raises(InputError, match=r"DNNConfig\.model_type is 'rerank_dnn': expected 'rerank_mine'"):
        auto.register_reranker("mine", *dnn)
    assert auto.RERANKERS == RERANKERS


def test_an_unfitted_schema_is_rejected():
    with pytest.raises(InputError, match=r"not been fitted.*processor\.schema"):
        DNNConfig.for_schema(SCHEMA)


@every_model
def test_a_config_without_features_cannot_build_a_model(name):
    config, model = RERANKERS[name]
    assert config().item_vocab_sizes == []
    with pytest.raises(InputError, match=r"no features.*for_schema"):
        model(config())


@every_model
def test_unknown_options_are_rejected(name, schema):
    with pytest.raises(InputError, match=r"Config has no option 'embeding_dim'; did you mean 'embedding_dim'\?"):
        RERANKERS[name][0].for_schema(schema, embeding_dim=8)
    with pytest.raises(InputError, match=r"has no option 'zzz'$"):
        RERANKERS[name][0](zzz=1)


WRONG = [
    (RerankerConfig, {"embedding_dim": "16"}, "expected int, got str"),
    (RerankerConfig, {"embedding_dim": 16.0}, "expected int, got float"),
    (RerankerConfig, {"embedding_dim": True}, "expected int, got bool"),
    (RerankerConfig, {"embedding_dim": 0}, "embedding_dim: expected at least 1"),
    (RerankerConfig, {"max_list_length": 0}, "max_list_length"),
    (RerankerConfig, {"max_history_length": 0}, "max_history_length"),
    (RerankerConfig, {"item_vocab_sizes": [2]}, "fewer than 3 rows"),
    (RerankerConfig, {"user_vocab_sizes": (20,)}, "expected a list, got tuple"),
    (RerankerConfig, {"item_vocab_sizes": [20.0]}, "item at index 0 in list 'item_vocab_sizes'"),
    (RerankerConfig, {"num_item_dense": -1}, "num_item_dense.*at least 0"),
    (RerankerConfig, {"unknown_rate": 1}, r"expected a fraction in \[0, 1\)"),
    (RerankerConfig, {"unknown_rate": -0.1}, r"unknown_rate is -0\.1"),
    (RerankerConfig, {"initializer_range": 0.0}, "initializer_range"),
    (RerankerConfig, {"position_input": "embeding"}, "embedding.*none"),
    (RerankerConfig, {"task_loss": "log_loss"}, "binary_log_loss"),
    (RerankerConfig, {"history_vocab_sizes": [20]}, "history_shared_tables"),
    (RerankerConfig, {"history_vocab_sizes": [20], "history_shared_tables": [0]}, "history_shared_tables"),
    (RerankerConfig, {"attn_implementation": "someone/a-kernel"}, "expected 'eager' or 'sdpa'"),
    (DNNConfig, {"hidden_sizes": []}, "at least one width"),
    (DNNConfig, {"hidden_sizes": [8, 0]}, "each at least 1"),
    (DNNConfig, {"hidden_sizes": 8}, "hidden_sizes"),
    (DNNConfig, {"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob is 1\.0"),
    (PRMConfig, {"hidden_dropout_prob": -0.5}, r"hidden_dropout_prob is -0\.5"),
    (PRMConfig, {"num_attention_heads": 3}, "hidden_size=64 is not a multiple of num_attention_heads=3"),
    (PRMConfig, {"head_dim": 0}, "head_dim"),
    (PRMConfig, {"num_hidden_layers": 0}, "num_hidden_layers"),
    (DLCMConfig, {"hidden_size": 0}, "hidden_size is 0: expected at least 1"),
    (DLCMConfig, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    (DLCMConfig, {"num_scoring_heads": 0}, "num_scoring_heads is 0"),
    (DLCMConfig, {"input_size": -1}, "input_size is -1: expected at least 0"),
    (DLCMConfig, {"scoring": "multy"}, "'multiply', 'multi', 'add'.*got multy"),
    (DLCMConfig, {"hidden_dropout_prob": 1}, r"hidden_dropout_prob is 1: expected a fraction in \[0, 1\)"),
    (DLCMConfig, {"position_input": "none"}, "'sequence', 'sequence\\+embedding'.*got none"),
    (MiDNNConfig, {"hidden_sizes": [8, 0]}, "each at least 1"),
    (MiDNNConfig, {"hidden_dropout_prob": -1}, "hidden_dropout_prob is -1"),
    (MiDNNConfig, {"global_features": "numbers"}, "'all', 'dense'.*got numbers"),
    (SetRankConfig, {"hidden_size": 0}, "hidden_size is 0"),
    (SetRankConfig, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    (SetRankConfig, {"num_attention_heads": 0}, "num_attention_heads is 0"),
    (SetRankConfig, {"num_attention_heads": 5}, "hidden_size=64 is not a multiple of num_attention_heads=5"),
    (SetRankConfig, {"intermediate_size": 0}, "intermediate_size is 0"),
    (SetRankConfig, {"num_inducing_points": -1}, "num_inducing_points is -1: expected at least 0"),
    (SetRankConfig, {"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob is 1\.5"),
    (SetRankConfig, {"position_input": "embedding"}, "'ordinal', 'none'.*got embedding"),
    (PEARConfig, {"feature_hidden_size": 0}, "feature_hidden_size is 0"),
    (PEARConfig, {"hidden_size": 0}, "hidden_size is 0"),
    (PEARConfig, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    (PEARConfig, {"num_attention_heads": 3}, "hidden_size=64 is not a multiple of num_attention_heads=3"),
    (PEARConfig, {"intermediate_size": 0}, "intermediate_size is 0"),
    (PEARConfig, {"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob is nan"),
    (PEARConfig, {"list_loss_weight": -1}, "list_loss_weight is -1: expected a finite number of at least 0"),
    (PEARConfig, {"list_loss_weight": float("inf")}, "list_loss_weight is inf: expected a finite number"),
    (PEARConfig, {"list_loss_weight": float("nan")}, "list_loss_weight is nan"),
    (PEARConfig, {"list_loss_weight": "1"}, "list_loss_weight"),
    (RAISEConfig, {"hidden_size": 0}, "hidden_size is 0"),
    (RAISEConfig, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    (RAISEConfig, {"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
    (RAISEConfig, {"intermediate_size": 0}, "intermediate_size is 0"),
    (RAISEConfig, {"num_mixtures": 0}, "num_mixtures is 0: expected at least 1"),
    (RAISEConfig, {"hidden_dropout_prob": 1}, "hidden_dropout_prob is 1"),
]


@pytest.mark.parametrize(("config", "options", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_wrong_values_are_rejected(config, options, message, schema):
    with pytest.raises((InputError, StrictDataclassError), match=f"(?s){message}"):
        config(**options)
    if config is not RerankerConfig:
        with pytest.raises(InputError, match=f"(?s){config.__name__}: .*{message}"):
            config.for_schema(schema, **options)


def test_assigned_values_are_validated():
    config = PRMConfig()
    with pytest.raises(StrictDataclassError, match="expected int"):
        config.hidden_size = "64"


def test_integer_zero_is_accepted_for_float_options(schema):
    assert PRMConfig.for_schema(schema, hidden_dropout_prob=0, unknown_rate=0).hidden_dropout_prob == 0


NON_DEFAULTS = {
    "dnn": {"hidden_sizes": [3, 2], "hidden_dropout_prob": 0.25},
    "prm": {
        "hidden_size": 6,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 2,
        "intermediate_size": 5,
        "hidden_dropout_prob": 0,
    },
    "dlcm": {
        "hidden_size": 3,
        "num_hidden_layers": 2,
        "input_size": 0,
        "scoring": "add",
        "num_scoring_heads": 4,
        "hidden_dropout_prob": 0.25,
    },
    "midnn": {"hidden_sizes": [3, 2], "hidden_dropout_prob": 0.25, "global_features": "dense"},
    "setrank": {
        "hidden_size": 6,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 5,
        "num_inducing_points": 4,
        "hidden_dropout_prob": 0.25,
    },
    "pear": {
        "feature_hidden_size": 7,
        "hidden_size": 6,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 5,
        "hidden_dropout_prob": 0,
        "list_loss_weight": 0.25,
    },
    "raise": {
        "hidden_size": 6,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 5,
        "num_mixtures": 7,
        "hidden_dropout_prob": 0,
    },
}


@every_model
def test_every_field_survives_json(name, tiny, tmp_path):
    given = {
        "item_vocab_sizes": [9, 8],
        "num_item_dense": 7,
        "item_vector_dim": 6,
        "user_vocab_sizes": [5],
        "num_user_dense": 4,
        "history_vocab_sizes": [3, 9],
        "history_shared_tables": [-1, 0],
        "num_history_dense": 2,
        "max_list_length": 11,
        "max_history_length": 12,
        "schema_fingerprint": "0123456789abcdef",
        "embedding_dim": 13,
        "unknown_rate": 0,
        "item_unknown_rates": [0.5, 0.25],
        "user_unknown_rates": [0.75],
        "relative_features": True,
        "initial_score": "start",
        "initial_score_scale": 2.5,
        "initial_score_offset": -1.5,
        "initial_score_positions": [0.5] * 11,
        "task_loss": "lambda_loss",
        "propensity_floor": 0.25,
        "position_tower": "rows",
        "initializer_range": 0.125,
        **NON_DEFAULTS.get(name, {}),
    }
    config = RERANKERS[name][0](**given)
    classes = (RerankerConfig, RERANKERS[name][0])
    own = {entry.name for entry in fields(config) if any(entry.name in cls.__annotations__ for cls in classes)}
    assert own - set(given) == {"position_input"}, "a new field needs a value here"
    assert all(getattr(RERANKERS[name][0](), field) != value for field, value in NON_DEFAULTS.get(name, {}).items())
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {field: written[field] for field in given} == given
    for loaded in (
        type(config).from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        type(config).from_dict(json.loads(config.to_json_string())),
    ):
        assert type(loaded) is type(config)
        assert {field: getattr(loaded, field) for field in given} == given
    changed = type(config).from_pretrained(tmp_path, max_list_length=99)
    assert changed.max_list_length == 99


@every_model
def test_the_position_input_survives_json(name, tiny, tmp_path):
    choices = next(get_args(entry.type) for entry in fields(RERANKERS[name][0]) if entry.name == "position_input")
    assert len(choices) == 2
    for choice in choices:
        tiny.config(name, position_input=choice).save_pretrained(tmp_path)
        assert RERANKERS[name][0].from_pretrained(tmp_path).position_input == choice


@pytest.mark.parametrize(
    "planted",
    [
        {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}},
        {"trust_remote_code": True},
        {"_attn_implementation_internal": "someone/a-kernel"},
        {"_attn_implementation": "someone/a-kernel"},
        {"attn_implementation": "someone/a-kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"dropuot": 0.5},
    ],
    ids=lambda planted: next(iter(planted)),
)
def test_malicious_and_unknown_config_keys_are_rejected(planted, tiny, tmp_path):
    """Nothing in a config.json can name code to load: such a checkpoint does not load at all."""
    tiny.model("prm").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **planted}))
    for loader in (PRMForReranking, AutoReranker, AutoConfig):
        with pytest.raises(InputError, match=rf"{next(iter(planted))}"):
            loader.from_pretrained(tmp_path)


def test_registered_rerankers_and_lookup_errors(tmp_path):
    for name, (config, model) in RERANKERS.items():
        assert config.model_type == f"rerank_{name}"
        assert model.config_class is config
        assert reranker_classes(name) == (config, model)
    with pytest.raises(InputError, match=r"unknown re-ranker 'prn'.*did you mean 'prm'"):
        reranker_classes("prn")
    with pytest.raises(InputError, match="neither a folder here nor a repository"):
        AutoReranker.from_pretrained(tmp_path / "no such folder")
    with pytest.raises(InputError, match=r"has no config\.json"):
        AutoReranker.from_pretrained(tmp_path)
    for text, message in (
        ("{", "is not valid JSON.*save or download it again"),
        ("[]", "holds a list: expected a JSON object"),
        ("{}", "model_type"),
        ('{"model_type": "bert"}', "type 'bert': expected one of .*rerank_prm"),
        ('{"model_type": "prm"}', "type 'prm'"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            AutoReranker.from_pretrained(tmp_path)
