"""The daily warm start of hf_rerank/training/README.md: new ids, old weights, by the command and in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_rerank import Categorical, Dense, ListSchema, Reranker, cli
from hf_rerank.data.loading import load_lists

SCHEMA = ListSchema(
    items=[Categorical("item_id"), Dense("price")], position="rank", list_id="request", group="user", max_list_length=4
)
OPTIONS = ["--per_device_train_batch_size", "32", "--disable_tqdm", "true", "--use_cpu", "true"]


def run(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def prepare_day(folder: Path, number: int) -> Path:
    """300 lists of four of 40 items; items 4 n are clicked. Each day, ten items disappear and ten are new."""
    draw = np.random.default_rng(number)
    lines = ["request,user,item_id,price,click,rank"]
    for request in range(300):
        items = 10 * number + draw.permutation(40)[:4]
        for rank, item in enumerate(items):
            lines.append(f"{number}-{request},{request // 2},{item},{draw.random():.3f},{int(item % 4 == 0)},{rank}")
    file = folder / f"day{number}.csv"
    file.write_text("\n".join(lines) + "\n")
    SCHEMA.save(folder / "schema.json")
    output = folder / f"lists{number}"
    run("prepare", "own", "--input", file, "--schema", folder / "schema.json", "--output-dir", output)
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days")
    model = ["--model", "dnn", "--set", "hidden_sizes=[8]", "--num_train_epochs", "8", "--learning_rate", "0.02"]
    run("train", "--data", prepare_day(folder, 1), "--output-dir", folder / "model1", *model, *OPTIONS)
    return folder


def ndcg(capsys: pytest.CaptureFixture[str], model: Path, lists: Path, output: Path) -> tuple[float, str]:
    from hf_rerank.storage import read_json

    capsys.readouterr()
    run("evaluate", "--model", model, "--data", lists, "--swaps", "one", "--max-steps", "0", "--json", output)
    return read_json(output)["rows"]["model"]["ndcg@5"], capsys.readouterr().out


@pytest.mark.slow
def test_warm_start_on_the_next_day_adds_new_ids_and_improves_ndcg(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists, output = prepare_day(folder, 2), folder / "measures.json"
    with pytest.warns(UserWarning, match=r"column 'item_id': 2\d\.\d% of its values are unknown; in training 0\.0%"):
        before, said = ndcg(capsys, folder / "model1", lists, output)
    assert "of item_id unknown" in said  # 10 of 40 items
    tune = ["--num_train_epochs", "4", "--learning_rate", "0.01", *OPTIONS]
    run("train", "--from", folder / "model1", "--data", lists, "--output-dir", folder / "model2", *tune)
    assert "item_id: 10 new values, 0 too rare" in capsys.readouterr().out
    after, said = ndcg(capsys, folder / "model2", lists, output)
    assert "unknown" not in said
    assert after > before
    old, new = (Reranker.from_pretrained(folder / name) for name in ("model1", "model2"))
    # The rows of old items are unchanged: 10 to 49, followed by 50 to 59.
    assert new.processor.vocabularies["item_id"].values.tolist() == list(range(10, 60))
    assert old.processor.vocabularies["item_id"].values.tolist() == list(range(10, 50))
    # Later lists are compared with the day on which the model was last trained.
    assert new.processor.fit_report["training"]["unknown"]["item_id"] == 0
    train = load_lists(lists)["train"]
    assert new.processor.fit_report["training"]["values"]["item_id"] == 4 * len(train)
    # Items that disappeared have not been seen since: only weight decay may change their rows.
    gone = slice(2, 12)
    tables = [model.model.item_embedding.item_tables[0].weight[gone] for model in (old, new)]
    assert torch.allclose(*tables, atol=0.05)
