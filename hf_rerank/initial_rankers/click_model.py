"""A click model: the library's DNN, trained to predict the click on each item separately.

It is the initial ranker ``dnn``, and the activations of its last hidden layer are the personalised vector of an item
for a user (Pei et al. 2019).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from hf_rerank.errors import InputError, TrainingStopped
from hf_rerank.initial_rankers.lambdamart import FORMAT_VERSION, RANKER_FILE, read_settings
from hf_rerank.initial_rankers.qualities import find_quality
from hf_rerank.initial_rankers.ranker_train import choose_ranker_lists, select_features
from hf_rerank.models.dnn import DNNConfig, DNNForReranking
from hf_rerank.processing import ListProcessor, RerankCollator
from hf_rerank.processing.processor import CONFIG_FILE, VOCABULARIES_FILE
from hf_rerank.schema import FEATURE_TENSORS, ListSchema
from hf_rerank.storage import save_files
from hf_rerank.storage.hub_download import fetch_verified_folder
from hf_rerank.training.encoded_lists import EncodedLists
from hf_rerank.validation import Lists

BATCH_LISTS = 32
# Training stops after this many epochs without a better log-loss on the held-out lists.
PATIENCE = 2


class ClickModel:
    """A pointwise network over the features of each item and the user. Made by ``fit`` or ``from_pretrained``.

    Attributes:
        settings: How it was trained, as JSON values.
    """

    def __init__(self, model: DNNForReranking, processor: ListProcessor, settings: dict[str, Any]) -> None:
        self.model, self.processor, self.settings = model.eval(), processor, settings

    @classmethod
    def fit(
        cls,
        lists: Any,
        schema: ListSchema,
        *,
        quality: str = "strong",
        hidden_sizes: Sequence[int] | None = None,
        seed: int = 0,
        at_most: int | None = None,
        progress: bool = False,
    ) -> ClickModel:
        """Trains on ``ranker_train`` lists by log-loss with AdamW; keeps the weights that are best on held-out lists.

        Args:
            lists: A ``datasets`` Dataset of the split ``ranker_train``.
            schema: Schema of the lists; position, attraction and history are not read.
            quality: See ``qualities``.
            hidden_sizes: Widths of the hidden layers. None: those of the quality.
            seed: Seed of the parts of lists, of the weights and of the order of lists.
            at_most: Maximum number of lists to use, spread evenly over the split. None: all that the quality allows.
            progress: Show a progress bar if training takes longer than a second.

        Raises:
            InputError: No list has a click, or a label is above 1.
            TrainingStopped: The loss is not finite.
        """
        means = find_quality(quality)
        chosen = choose_ranker_lists(lists, schema, use=means.lists(len(lists), at_most), seed=seed)
        processor = ListProcessor.from_lists(chosen.train, schema=chosen.schema)
        collator = RerankCollator(processor, highest_label=1.0)
        train, held_out = EncodedLists(chosen.train, collator), EncodedLists(chosen.held_out, collator)
        sizes = list(means.hidden_sizes if hidden_sizes is None else hidden_sizes)
        # The caller's random state is not changed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = DNNForReranking(
                DNNConfig.for_schema(processor.schema, hidden_sizes=sizes, position_input="none", unknown_rate=0.01)
            )
            # Otherwise the first hundreds of steps only lower all scores, mostly of items with large features, and a
            # short training ends up worse than a random order.
            bias: Any = model.scorer.bias
            torch.nn.init.constant_(bias, math.log(chosen.click_rate / (1 - chosen.click_rate)))
            losses = _train(model, train, held_out, means.epochs, means.learning_rate, seed, progress)
        settings = {
            "ranker": "dnn",
            "quality": quality,
            "seed": seed,
            **chosen.counts(),
            "hidden_sizes": sizes,
            "learning_rate": means.learning_rate,
            "epochs": 1 + int(np.argmin(losses)),
            "held_out_log_loss": min(losses),
        }
        return cls(model, processor, settings)

    def scores(self, table: pa.Table) -> np.ndarray:
        """Scores the items of all lists of a table: logits, float64 [N], one list after another."""
        lists = Lists.from_arrow(select_features(table, self.processor.schema), self.processor.schema)
        return self._run_on_items(lists, lambda inputs: self.model(**inputs).logits).astype(np.float64)

    def encode_items(self, lists: Lists) -> np.ndarray:
        """Computes the last hidden layer's activations for the items of all lists, float32 [N, D]."""
        return self._run_on_items(lists, lambda inputs: self.model.encode_items(**inputs))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights, processor, settings and a manifest, completely or not at all."""
        with save_files(folder) as staging:
            self.model.save_pretrained(staging)
            self.processor.save_pretrained(staging)
            plain = {"format_version": FORMAT_VERSION, **self.settings}
            (staging / RANKER_FILE).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ClickModel:
        """Loads a click model that ``save_pretrained`` wrote.

        Raises:
            InputError: A file is missing, damaged or not part of the saved model.
        """
        path = fetch_verified_folder(folder, (RANKER_FILE, CONFIG_FILE, VOCABULARIES_FILE))
        settings = read_settings(path, "dnn")
        return cls(DNNForReranking.from_pretrained(path), ListProcessor.from_pretrained(path), settings)

    def _run_on_items(self, lists: Lists, compute: Any) -> np.ndarray:
        arrays = self.processor.encode(lists)[0].pad()
        found = []
        for start in range(0, len(lists), BATCH_LISTS):
            inputs = {
                name: torch.from_numpy(array[start : start + BATCH_LISTS])
                for name, array in arrays.items()
                if name in FEATURE_TENSORS
            }
            with torch.no_grad():
                found.append(compute(inputs)[inputs["mask"]].numpy())
        values = np.concatenate(found)
        if not np.isfinite(values).all():
            raise InputError(
                "the click model returns values that are not finite: a number in the lists is far outside the range "
                "of the training data, or its weights are damaged"
            )
        return values


def _train(
    model: DNNForReranking,
    train: EncodedLists,
    held_out: EncodedLists,
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: bool,
) -> list[float]:
    """Trains in place and keeps the best weights; returns the log-loss on the held-out lists after each epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    order = np.random.default_rng(seed)
    losses: list[float] = []
    best: dict[str, Tensor] = {}
    steps = -(-len(train) // BATCH_LISTS)
    with tqdm(
        total=epochs * steps, desc="Training the click model", delay=1, leave=False, disable=not progress
    ) as bar:
        for _ in range(epochs):
            model.train()
            shuffled = order.permutation(len(train))
            for start in range(0, len(train), BATCH_LISTS):
                loss = _loss(model, train, shuffled[start : start + BATCH_LISTS])
                if not bool(torch.isfinite(loss)):
                    raise TrainingStopped(
                        "the click model's loss is not finite: look for extremely large numbers in ranker_train"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
            losses.append(_mean_loss(model, held_out))
            if not math.isfinite(losses[-1]):
                raise TrainingStopped(
                    "the click model's loss is not finite on the held-out lists: look for extremely large numbers in "
                    "ranker_train"
                )
            since_best = len(losses) - 1 - int(np.argmin(losses))  # among equal losses the first is the best
            if since_best == 0:
                best = copy.deepcopy(model.state_dict())
            elif since_best >= PATIENCE:
                break
    model.load_state_dict(best)
    return losses


def _loss(model: DNNForReranking, lists: EncodedLists, numbers: Any) -> Tensor:
    return model(**lists.collator.to_tensors(lists.__getitems__([int(number) for number in numbers]))).loss


@torch.no_grad()
def _mean_loss(model: DNNForReranking, lists: EncodedLists) -> float:
    model.eval()
    numbers, total = range(len(lists)), 0.0
    for start in range(0, len(lists), BATCH_LISTS):
        part = numbers[start : start + BATCH_LISTS]
        total += float(_loss(model, lists, part)) * len(part)
    return total / len(lists)
