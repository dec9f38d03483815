"""Prepared lists from a dataset repository on the Hub: fetched once into the Hub's cache, or streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from hf_rerank.data.custom.files import is_list_file
from hf_rerank.data.prepared import SCHEMA_FILE, group_shards
from hf_rerank.errors import InputError
from hf_rerank.schema import ListSchema
from hf_rerank.storage import verify
from hf_rerank.storage.hub_download import describe_repair, find_model_file
from hf_rerank.storage.hub_errors import report_hub_errors
from hf_rerank.storage.hub_names import looks_local

KIND = "dataset"


def is_repository(source: str | Path) -> bool:
    """Whether a source that is not a local folder may be the id of a repository, such as ``"someone/lists"``."""
    return (
        isinstance(source, str) and not looks_local(source) and not is_list_file(source) and not Path(source).exists()
    )


def fetch_lists(repo_id: str, revision: str | None, token: str | None) -> Path:
    """The folder of the Hub's cache with the lists of a repository; cached files are not fetched again.

    Raises:
        InputError: There is no such repository or revision, it contains no prepared lists, it cannot be reached, or a
            file in the cache does not have the size of the pushed file.
    """
    from huggingface_hub import snapshot_download

    # The commit of the first file, so that all files come from the same one.
    first = find_model_file(repo_id, SCHEMA_FILE, repo_type=KIND, revision=revision, token=token)
    commit = first.parent.name
    with report_hub_errors(f"the lists of {repo_id} could not be fetched", token=token):
        folder = Path(
            snapshot_download(
                repo_id,
                repo_type=KIND,
                revision=commit,
                token=token,
                allow_patterns=["*.parquet", "*.json", "README.md"],
            )
        )
    # Not by digests: reading all lists each time they are loaded would take longer than loading them.
    verify(folder, lambda name: True, describe_repair(repo_id, commit, KIND), digests=False)
    return folder


def stream_lists(
    repo_id: str, revision: str | None, token: str | None
) -> tuple[dict[str, datasets.IterableDataset], ListSchema]:
    """Splits that are streamed from the Hub, and their schema, both from the same commit.

    Raises:
        InputError: As in ``fetch_lists``.
    """
    from huggingface_hub import HfApi

    schema = find_model_file(repo_id, SCHEMA_FILE, repo_type=KIND, revision=revision, token=token)
    commit = schema.parent.name
    with report_hub_errors(f"the lists of {repo_id} could not be listed", token=token):
        names = HfApi(token=token).list_repo_files(repo_id, repo_type=KIND, revision=commit)
    shards = group_shards(repo_id, sorted(name for name in names if name.endswith(".parquet")))
    splits: dict[str, Any] = {}
    with report_hub_errors(f"the lists of {repo_id} could not be streamed", token=token):
        for split, files in shards.items():
            splits[split] = datasets.IterableDataset.from_parquet(
                [f"hf://datasets/{repo_id}@{commit}/{name}" for name in files],
                split=datasets.NamedSplit(split),
                token=token,
            )
    return splits, ListSchema.load(schema)


def refuse_hub_options(shown: str, revision: str | None, token: str | None) -> None:
    """Refuses the options ``revision`` and ``token`` if the source is not a repository."""
    for option, value in (("revision", revision), ("token", token)):
        if value is not None:
            raise InputError(f"{option}= belongs to a repository on the Hub, but {shown} is not one: leave it out")
