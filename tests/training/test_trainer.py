"""The trainer: it learns, is reproducible bit for bit, and gives the same metrics as the library's evaluation."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import two_process_worker
from transformers import Trainer, TrainerCallback

from hf_rerank import InputError, ListProcessor, Reranker, RerankTrainer
from hf_rerank.evaluation import evaluate, evaluate_orders
from hf_rerank.evaluation.evaluator import encode_batches
from hf_rerank.metrics import auc, average_precision, expected_clicks, grouped_auc, ndcg, precision
from hf_rerank.schema import FEATURE_TENSORS
from hf_rerank.training import checkpointing_trainer, evaluating_trainer
from hf_rerank.training import trainer as trainer_module

Make = Callable[..., RerankTrainer]
TERMS = {"task_loss", "convergence_loss", "adversarial_loss", "score_spread"}
TIMES = ("runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time")


def are_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def only_measures(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without their prefix and without times."""
    plain = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {name: value for name, value in plain.items() if name not in TIMES}


def logged(trainer: RerankTrainer, name: str) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if name in entry]


def scores_of(model: Any, processor: ListProcessor, row: dict[str, Any]) -> np.ndarray:
    """The scores of one list, alone in its batch."""
    features = processor([{name: row[name] for name in ("item_id", "price", "gender", "position")}])
    return model.eval().rank(**features)[1][0].numpy()


# ----------------------------------------------------------------------------------------------- learning, and the log


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    lists: dict[str, Any],
    processor: ListProcessor,
    make_model: Callable[..., Any],
) -> RerankTrainer:
    """Eight epochs with both principles, saved."""
    from hf_rerank import RerankTrainingArguments

    arguments = RerankTrainingArguments(
        str(tmp_path_factory.mktemp("trained") / "run"),
        num_train_epochs=8,
        per_device_train_batch_size=16,
        learning_rate=0.02,
        max_grad_norm=1.0,
        use_cpu=True,
        disable_tqdm=True,
        hub_token="hf_canary_token",
    )
    trainer = RerankTrainer(
        model=make_model(),
        args=arguments,
        train_dataset=lists["train"],
        eval_dataset=lists["validation"],
        processing_class=processor,
    )
    trainer.train()
    trainer.evaluate(metric_key_prefix="final")
    trainer.save_model()
    return trainer


@pytest.mark.slow
def test_training_improves_on_the_initial_order(trained: RerankTrainer, lists: dict[str, Any]) -> None:
    losses = [entry["loss"] for entry in logged(trained, "loss")]
    assert len(losses) == 8
    assert losses[-1] < 0.85 * losses[0]
    initial = evaluate_orders(trained.processor, lists["validation"])["initial"]
    best = trained.results["evaluations"]["final"]
    assert best["final_ndcg@10"] > initial["ndcg@10"] + 0.03
    assert best["final_expected_clicks_share"] > 0.3


def test_log_contains_every_loss_term(trained: RerankTrainer) -> None:
    for entry in logged(trained, "loss"):
        assert {*TERMS, "grad_norm", "learning_rate"} <= entry.keys()
        assert all(np.isfinite(value) for value in entry.values())
        total = entry["task_loss"] + entry["further_task_loss"]
        total += 6 * entry["convergence_loss"] + 1.5 * entry["adversarial_loss"]
        assert entry["loss"] == pytest.approx(total, rel=1e-4)


def test_without_principles_there_are_no_consistency_terms(make_trainer: Make) -> None:
    trainer = make_trainer(principled="none", max_steps=2, logging_strategy="steps", logging_steps=1)
    trainer.train()
    entries = logged(trainer, "loss")
    assert len(entries) == 2
    for entry in entries:
        assert entry.keys() & TERMS == {"task_loss", "score_spread"}
        assert entry["loss"] == pytest.approx(entry["task_loss"], rel=1e-4)


def test_logged_score_spread_equals_numpy(
    make_trainer: Make, processor: ListProcessor, make_model: Any, lists: Any
) -> None:
    """The mean over lists of the standard deviation of a list's scores, computed with numpy."""
    model = make_model(hidden_dropout_prob=0.0, unknown_rate=0.0)
    rows = lists["train"].select(range(16))
    expected = [float(np.std(scores_of(model, processor, row))) for row in rows]
    options = {"per_device_train_batch_size": 16, "train_sampling_strategy": "sequential", "max_steps": 1}
    trainer = make_trainer(model, train_dataset=rows, logging_strategy="steps", logging_steps=1, **options)
    trainer.train()
    assert logged(trainer, "loss")[0]["score_spread"] == pytest.approx(np.mean(expected), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_trainer_metrics_equal_those_of_evaluate(trained: RerankTrainer, lists: dict[str, Any]) -> None:
    metrics = only_measures(trained.evaluate())
    expected = evaluate(trained.model, trained.processor, lists["validation"])
    for name in ("unknown_share", "settings", "drift"):
        expected.pop(name)
    loss = metrics.pop("loss")
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, rel=1e-6)

    # The loss: the mean over lists of the written-out binary log loss.
    per_list = []
    for batch in encode_batches(lists["validation"], trained.processor, batch_size=1):
        features = {name: batch[name] for name in FEATURE_TENSORS if name in batch}
        scores, labels = trained.model.rank(**features)[1][0].double(), batch["labels"][0].double()
        per_list.append(float((torch.log1p(torch.exp(scores)) - labels * scores).mean()))
    assert loss == pytest.approx(np.mean(per_list), rel=1e-5)


def test_trainer_metrics_equal_the_metric_functions(trained: RerankTrainer, lists: dict[str, Any]) -> None:
    """From ``model.rank``, list by list, padded here."""
    rows = lists["validation"]
    scores, labels, attraction = (np.zeros((len(rows), 8)) for _ in range(3))
    mask = np.zeros((len(rows), 8), dtype=bool)
    for number, row in enumerate(rows):
        length = len(row["item_id"])
        scores[number, :length] = scores_of(trained.model, trained.processor, row)
        labels[number, :length], attraction[number, :length] = row["click"], row["attraction"]
        mask[number, :length] = True
    expected = {
        "auc": auc(scores, labels, mask=mask),
        "gauc": grouped_auc(scores, labels, mask=mask),
        "ndcg@5": ndcg(scores, labels, mask=mask, k=5),
        "map@10": average_precision(scores, labels, mask=mask, k=10),
        "precision@5": precision(scores, labels, mask=mask, k=5),
        "expected_clicks": expected_clicks(scores, attraction, trained.processor.schema.examination, mask=mask),
    }
    metrics = only_measures(trained.evaluate())
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("while_training", [False, True])
def test_evaluation_batch_size_does_not_matter(
    trained: RerankTrainer, make_trainer: Make, while_training: bool
) -> None:
    """During training, obedience is measured on one swap per list, drawn by its id."""
    found = []
    for size in (1, 7, 50, 512):
        trainer = make_trainer(trained.model, per_device_eval_batch_size=size)
        trainer.is_in_train = while_training
        found.append(only_measures(trainer.evaluate()))
        assert found[-1]["lists"] == found[-1]["obedience_lists"] == 50
        assert ("fixed_point_rate" in found[-1]) is not while_training
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


def test_scores_of_minus_100_are_not_treated_as_padding(
    make_trainer: Make, make_model: Any, lists: dict[str, Any]
) -> None:
    """-100 marks padding in labels; a score may be -100 or lower."""
    model = make_model()
    with torch.no_grad():
        model.scorer.bias.fill_(-100.0)
    trainer = make_trainer(model)
    metrics = only_measures(trainer.evaluate())
    assert metrics["items"] == sum(len(row) for row in lists["validation"]["item_id"])
    expected = evaluate(model, trainer.processor, lists["validation"])
    assert metrics["ndcg@5"] == pytest.approx(expected["ndcg@5"])


@pytest.mark.slow
def test_a_failed_evaluation_leaves_no_state_behind(make_trainer: Make, lists: dict[str, Any]) -> None:
    trainer = make_trainer(per_device_eval_batch_size=10)
    expected = only_measures(trainer.evaluate())
    rows = lists["validation"].to_list()
    rows[37]["price"][0] = None
    rows[37]["click"][0] = -1
    with pytest.raises(InputError, match=r"list-2-37.*at least 0"):
        trainer.evaluate(datasets.Dataset.from_list(rows))
    assert only_measures(trainer.evaluate()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_evaluation_sets_in_a_dictionary_are_evaluated_separately(make_trainer: Make, lists: dict[str, Any]) -> None:
    trainer = make_trainer()
    metrics = trainer.evaluate({"seen": lists["train"], "new": lists["validation"]})
    assert (metrics["eval_seen_lists"], metrics["eval_new_lists"]) == (240, 50)
    assert trainer.results["evaluations"].keys() == {"eval_seen", "eval_new"}


def test_predict_returns_scores_labels_and_positions(
    trained: RerankTrainer, make_trainer: Make, lists: dict[str, Any]
) -> None:
    output = make_trainer(trained.model, per_device_eval_batch_size=16).predict(lists["validation"])
    (scores, _), (labels, positions, _) = output.predictions, output.label_ids
    assert output.metrics["test_lists"] == len(scores) == 50
    for number in (0, 31, 49):
        row = lists["validation"][number]
        real = labels[number] >= 0
        assert labels[number][real].tolist() == row["click"]
        assert positions[number][real].tolist() == row["position"]
        expected = scores_of(trained.model, trained.processor, row)
        np.testing.assert_allclose(scores[number][real], expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ bit-for-bit equality


def test_accumulated_batches_equal_one_large_batch(make_trainer: Make, make_model: Any, weights: Any) -> None:
    """Batch 8 = 4 x 2 accumulated: SGD, both principles, perturbations drawn by list and step."""
    found = []
    for size, accumulated in ((8, 1), (4, 2), (2, 4)):
        model = make_model(hidden_dropout_prob=0.0, unknown_rate=0.0)
        before = weights(model)
        trainer = make_trainer(
            model,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0,  # clipping would hide a wrongly scaled gradient
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            train_sampling_strategy="sequential",
            max_steps=1,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
        )
        trainer.train()
        assert trainer.state.global_step == 1
        found.append(weights(trainer.model))
        assert largest_difference(before, found[-1]) > 1e-3
    assert largest_difference(found[0], found[1]) < 1e-6
    assert largest_difference(found[0], found[2]) < 1e-6


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(make_trainer: Make, make_model: Any, weights: Any) -> None:
    found = []
    for number, seed in enumerate((3, 3, 4)):
        trainer = make_trainer(make_model(seed=1), folder=f"run{number}", seed=seed)
        trainer.train()
        found.append(weights(trainer.model))
    assert are_equal(found[0], found[1])
    assert not are_equal(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_resumed_runs_equal_the_unbroken_run(
    make_trainer: Make, make_model: Any, weights: Any, lists: dict[str, Any], stream: bool
) -> None:
    """Dropout, unknown ids, shuffling; interrupted within an epoch of 7.5 steps and after it, resumed twice. With a
    dataset, the second and third runs use a cache of encoded lists, which gives the same batches."""
    shuffled = lists["train"].to_iterable_dataset(num_shards=2).shuffle(seed=5, buffer_size=50)
    options = {
        "max_steps": 14,
        "train_dataset": shuffled if stream else None,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "load_best_model_at_end": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    model = {"hidden_dropout_prob": 0.2, "unknown_rate": 0.05}
    unbroken = make_trainer(make_model(**model), folder="unbroken", **options)
    unbroken.train()
    first = Path(unbroken.args.output_dir)
    cuts = (3, 8, 12)
    resumed_from = first / f"checkpoint-{cuts[0]}"
    for number, cut in enumerate(cuts):
        # Different initial weights: all weights must come from the checkpoint.
        cache = {"encoded_cache": str(first.parent / "cache")} if number and not stream else {}
        resumed = make_trainer(make_model(seed=9, **model), folder=f"resumed{number}", **options, **cache)
        resumed.train(resume_from_checkpoint=str(resumed_from))
        assert are_equal(weights(resumed.model), weights(unbroken.model)), cut
        steps = {entry["step"]: entry for entry in logged(unbroken, "loss")}
        for entry in logged(resumed, "loss"):
            assert entry == steps[entry["step"]]
        if number + 1 < len(cuts):  # the next one resumes from a run that was itself resumed
            resumed_from = Path(resumed.args.output_dir) / f"checkpoint-{cuts[number + 1]}"


# --------------------------------------------------------------------------------------------------------- saved files


class Reverse(TrainerCallback):
    """Reverses every ranking after step ``at``."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.at:
            with torch.no_grad():
                model.scorer.weight.neg_()


@pytest.mark.slow
def test_the_best_checkpoint_is_loaded(make_trainer: Make, make_model: Any, weights: Any) -> None:
    trainer = make_trainer(make_model(), num_train_epochs=6, callbacks=[Reverse(at=48)], save_total_limit=None)
    trainer.train()
    values = {entry["step"]: entry["eval_ndcg@10"] for entry in logged(trainer, "eval_ndcg@10")}
    assert len(values) == 6
    best = max(values, key=lambda step: values[step])
    assert best < 48
    assert trainer.results["training"]["best_step"] == best
    assert trainer.results["training"]["best_metric"] == values[best]
    folder = Path(trainer.args.output_dir)
    loaded = Reranker.from_pretrained(folder / f"checkpoint-{best}")
    assert are_equal(weights(trainer.model), weights(loaded.model))
    assert trainer.evaluate()["eval_ndcg@10"] == pytest.approx(values[best], abs=1e-12)


def test_files_saved_by_a_run(trained: RerankTrainer) -> None:
    folder = Path(trained.args.output_dir)
    model_files = {"config.json", "model.safetensors", "preprocessor_config.json", "vocabularies.safetensors"}
    kept = {path.name for path in folder.iterdir() if path.is_file()}
    assert kept == {*model_files, "manifest.json", "training_args.json", "results.json"}
    checkpoints = [path for path in folder.iterdir() if path.is_dir()]
    assert 1 <= len(checkpoints) <= 2
    for checkpoint in checkpoints:
        names = {path.name for path in checkpoint.iterdir()}
        assert {*model_files, "manifest.json", "training_args.json", "optimizer.pt", "trainer_state.json"} <= names
        assert names.isdisjoint({"training_args.bin", "results.json"})


def test_results_file_describes_the_run(trained: RerankTrainer, lists: dict[str, Any]) -> None:
    text = (Path(trained.args.output_dir) / "results.json").read_text()
    assert "hf_canary_token" not in text
    found = json.loads(text)
    assert found["training_arguments"]["num_train_epochs"] == 8
    assert found["model"]["model_type"] == "rerank_prm"
    assert found["parameters"] == sum(parameter.numel() for parameter in trained.model.parameters())
    assert found["schema"] == trained.processor.schema.to_dict()
    assert found["objective"]["principled"] == "augmented"
    assert {term["name"]: term["weight"] for term in found["objective"]["terms"]} == {
        "convergence": 6.0,
        "adversarial": 1.5,
    }
    assert {split: entry["lists"] for split, entry in found["data"].items()} == {"train": 240, "validation": 50}
    assert found["data"]["train"]["sha256"] != found["data"]["validation"]["sha256"]
    assert found["environment"]["versions"]["torch"]
    assert found["evaluations"]["final"]["final_lists"] == 50
    assert found["training"]["steps"] == 8 * 15
    assert [entry["step"] for entry in found["training"]["log"] if "loss" in entry] == list(range(15, 121, 15))


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.mark.slow
def test_two_processes_equal_one(
    tmp_path: Path, lists: dict[str, Any], processor: ListProcessor, make_model: Any, weights: Any
) -> None:
    """Two steps of 2 x 4 lists on gloo equal two steps of 8 lists; evaluation counts each of 13 lists once."""
    Reranker(processor, make_model(hidden_dropout_prob=0.0, unknown_rate=0.0)).save_pretrained(tmp_path / "model")
    lists["train"].select(range(16)).save_to_disk(tmp_path / "train")
    lists["validation"].select(range(13)).save_to_disk(tmp_path / "validation")
    two_process_worker.main(tmp_path, tmp_path / "on1", 8)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ran = subprocess.run(
        [*launcher, two_process_worker.__file__, str(tmp_path), str(tmp_path / "on2"), "4"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, *both = (
        json.loads((tmp_path / name).read_text()) for name in ("on1/rank0.json", "on2/rank0.json", "on2/rank1.json")
    )
    assert [report["world_size"] for report in (one, *both)] == [1, 2, 2]
    after_one, after_two = (
        weights(Reranker.from_pretrained(tmp_path / name / "model").model) for name in ("on1", "on2")
    )
    assert largest_difference(weights(make_model(hidden_dropout_prob=0.0, unknown_rate=0.0)), after_one) > 1e-3
    assert largest_difference(after_one, after_two) < 1e-6
    # Each process trained on its half of each batch of 8.
    assert [both[0]["ids"][step] + both[1]["ids"][step] for step in (0, 1)] == one["ids"]
    # Every kind of perturbation of every list at every step, on whichever process.
    assert len(one["perturbed"]) == 5 * 16
    assert {**both[0]["perturbed"], **both[1]["perturbed"]} == one["perturbed"]
    assert both[0]["checksum"] == both[1]["checksum"]
    assert both[0]["metrics"].keys() == one["metrics"].keys()
    assert both[0]["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert both[0]["log"] == pytest.approx(one["log"], abs=1e-4)
    assert one["metrics"]["eval_lists"] == 13


# ----------------------------------------------------------------------------------------------------- only public API


def test_every_list_is_evaluated_even_with_drop_last(make_trainer: Make, lists: dict[str, Any]) -> None:
    """50 lists in batches of 32: the last 18 count as well."""
    trainer = make_trainer(dataloader_drop_last=True)
    model = trainer.model
    assert only_measures(trainer.evaluate()) == only_measures(make_trainer(model, folder="other").evaluate())
    assert len(trainer.predict(lists["validation"]).predictions[0]) == 50
    assert trainer.args.dataloader_drop_last


@pytest.mark.slow
def test_persistent_workers_read_the_requested_evaluation_lists(make_trainer: Make, lists: dict[str, Any]) -> None:
    trainer = make_trainer(dataloader_num_workers=1, dataloader_persistent_workers=True)
    validation, other = trainer.evaluate(), trainer.evaluate(lists["train"])
    plain = make_trainer(trainer.model, folder="other")
    assert only_measures(validation) == only_measures(plain.evaluate())
    assert only_measures(other) == only_measures(plain.evaluate(lists["train"]))
    assert only_measures(trainer.evaluate()) == only_measures(validation) != only_measures(other)


def test_no_private_method_of_the_upstream_trainer_is_used() -> None:
    """No underscore method of ``transformers.Trainer`` is called, overridden or hidden by an attribute."""
    upstream = ast.parse(inspect.getsource(inspect.getmodule(Trainer)))  # type: ignore[arg-type]
    private = {name for name in dir(Trainer) if name.startswith("_") and not name.startswith("__")}
    private |= {
        node.attr
        for node in ast.walk(upstream)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and node.attr.startswith("_")
    }
    assert {"_save_checkpoint", "_inner_training_loop", "_globalstep_last_logged"} <= private
    for module, allowed in (
        (trainer_module, set()),
        (evaluating_trainer, set()),
        (checkpointing_trainer, {"_save_checkpoint"}),  # justified there; test_killed_trainings.py fails if it changes
    ):
        names = private_names_in(module)
        assert names
        assert names & private == allowed, module.__name__


def private_names_in(module: Any) -> set[str]:
    """The underscore attributes and methods that the trainer class of a module uses or defines."""
    parsed = ast.parse(inspect.getsource(module))
    (own_class,) = (node for node in parsed.body if isinstance(node, ast.ClassDef) and node.name.endswith("Trainer"))
    used = {node.attr for node in ast.walk(own_class) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in own_class.body if isinstance(node, ast.FunctionDef)}
    return {name for name in used if name.startswith("_") and not name.startswith("__")}
