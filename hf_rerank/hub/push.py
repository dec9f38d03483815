"""Creates a repository and uploads a folder to it as one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# All that a repository of ours may hold; anything else in the folder would be a mistake.
PUSHED = (
    "README.md",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "vocabularies.safetensors",
    "results.json",
    "training_args.json",
)


def create_repository(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Creates a model repository if there is none.

    Args:
        repo_id: ``"someone/name"``, or a name of your own.
        private: Whether a repository that this creates is private.
        token: None: the one you logged in with.

    Returns:
        Its whole id, ``"someone/name"``.
    """
    from huggingface_hub import HfApi

    return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str,
    token: str | None = None,
    revision: str | None = None,
) -> Any:
    """Uploads the folder's model files to a repository in one commit.

    Args:
        folder: What to upload.
        repo_id: ``"someone/name"``.
        commit_message: Of the commit.
        token: None: the one you logged in with.
        revision: Branch to commit to.

    Returns:
        The ``CommitInfo``.
    """
    from huggingface_hub import HfApi

    return HfApi(token=token).upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        commit_message=commit_message,
        revision=revision,
        allow_patterns=list(PUSHED),
    )
