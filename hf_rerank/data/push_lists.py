"""Pushing prepared lists to the Hub, as a dataset that ``load_lists`` reads from there; one commit or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_rerank.data.prepared import NO_REDISTRIBUTION, find_licence, read_prepared, refuse_unfinished
from hf_rerank.errors import InputError
from hf_rerank.storage import MANIFEST, InputFiles
from hf_rerank.storage.hub_repository import open_repository
from hf_rerank.storage.hub_upload import CARD, choose_files, commit_files

# Rejected lines, and the models that made columns, are not pushed.
PUSHED_LISTS = (CARD, "schema.json", "report.json", MANIFEST, "*-?????-of-?????.parquet")
LOCAL_FOLDER = "path/to/this/folder"


def push_lists(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str = "Upload lists",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    have_the_right_to_redistribute: bool = False,
) -> Any:
    """Uploads prepared lists as a dataset: shards, schema, report and card; ``load_lists(repo_id)`` reads them.

    Args:
        folder: A folder of prepared lists.
        repo_id, commit_message, private, token, revision, create_pr: As for ``push_model``.
        have_the_right_to_redistribute: You have the owner's permission to redistribute lists whose card forbids it. A
            private repository also needs it, as the lists leave your machine all the same.

    Returns:
        The ``CommitInfo``.

    Raises:
        InputError: The folder contains no complete prepared lists, they may not be redistributed, or see
            ``push_model``.
    """
    folder = Path(folder)
    refuse_unfinished(folder)
    inputs = InputFiles(path for path in folder.glob("[!.]*") if path.is_file())
    if not (folder / "schema.json").is_file():
        raise InputError(f"{folder} is not a folder of prepared lists (it has no schema.json): see hf-rerank prepare")
    read_prepared(folder)
    licence = find_licence(folder)
    if licence is None:
        raise InputError(
            f"{folder} does not say who may redistribute its lists (no licence in {CARD}): prepare the lists again, "
            f"or write a section '## Licence' into {CARD}"
        )
    if licence == NO_REDISTRIBUTION and not have_the_right_to_redistribute:
        raise InputError(
            f"the lists in {folder} may not be redistributed (see Licence in {CARD}), and a push, even a private one, "
            "would breach that. Push simulated lists, or the model only; if the owner of the data permits it, confirm "
            "this: have_the_right_to_redistribute=True (--i-have-the-right-to-redistribute)"
        )
    repository = open_repository(
        repo_id, "dataset", private=private, revision=revision, create_pr=create_pr, token=token
    )
    files: dict[str, Path | bytes] = {**choose_files(folder, PUSHED_LISTS)}
    card = (folder / CARD).read_text(encoding="utf-8")
    files[CARD] = card.replace(LOCAL_FOLDER, repository.repo_id).encode()
    return commit_files(repository, files, owned=PUSHED_LISTS, message=commit_message, inputs=inputs)
