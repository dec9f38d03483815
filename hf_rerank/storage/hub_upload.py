"""Uploading the files of a model or processor to a repository on the Hub, as one commit."""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rerank.storage.hub_repository import Repository, open_repository
from hf_rerank.storage.inputs import InputFiles
from hf_rerank.storage.manifest import MANIFEST, make_manifest

CARD = "README.md"
TAGS = ("re-ranking", "recommender-system")
# What model.save_pretrained and processor.save_pretrained write.
MODEL_FILES = ("config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
PROCESSOR_FILES = ("preprocessor_config.json", "vocabularies.safetensors", "trees.safetensors")


def push_saved(save: Callable[[Path], object], repo_id: str, *, commit_message: str, **options: Any) -> Any:
    """Uploads what ``save`` writes, a model or a processor; the other files of the repository stay.

    A repository without a card gets one that says how to load a re-ranker.

    Args:
        save: ``folder -> None``: writes into the empty folder.
        repo_id: ``"someone/name"``, or a name in your own namespace.
        commit_message: Commit message.
        options: ``private``, ``token``, ``revision``, ``create_pr``, as for ``open_repository``.

    Returns:
        The ``CommitInfo``.

    Raises:
        InputError: The Hub refuses the push or fails; then nothing was committed, unless the message says that this is
            not known.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        repository = open_repository(repo_id, "model", **options)
        files = choose_files(folder, (*MODEL_FILES, *PROCESSOR_FILES))
        owned = (*files, *MODEL_FILES) if "config.json" in files else tuple(files)
        if CARD not in repository.files:
            files[CARD] = make_plain_card(repository.repo_id).encode()
        return commit_files(repository, files, owned=owned, message=commit_message)


def choose_files(folder: Path, patterns: Sequence[str]) -> dict[str, Path | bytes]:
    """The files of a folder whose names match a pattern, without the manifest, which is written again."""
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST and any(fnmatch.fnmatch(path.name, name) for name in patterns)
    }


def commit_files(
    repository: Repository,
    files: Mapping[str, Path | bytes],
    *,
    owned: Sequence[str],
    message: str,
    inputs: InputFiles | None = None,
) -> Any:
    """Commits files, with a manifest of them and of the other files of this library that the repository keeps.

    Args:
        repository: The repository, from ``open_repository``.
        files: Name -> a file, or its content.
        owned: Patterns of the files that the commit replaces; those that are not among ``files`` are deleted.
        message: Commit message.
        inputs: Files that must not have changed since they were noted; otherwise nothing is committed.
    """
    inputs = inputs or InputFiles([])
    kept = {}
    earlier = repository.read_manifest()
    if earlier is not None:
        kept = {
            name: about
            for name, about in earlier["files"].items()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in owned)
        }
    with inputs.require_unchanged():
        sent = {**files, MANIFEST: make_manifest(files, kept).encode()}
    return repository.commit(sent, owned=owned, message=message, inputs=inputs)


def make_plain_card(name: str) -> str:
    """The README.md of a repository whose results are not known."""
    tags = "\n".join(f"- {tag}" for tag in TAGS)
    code = f'from hf_rerank import Reranker\n\nreranker = Reranker.from_pretrained("{name}")'
    return f"---\nlibrary_name: hf_rerank\ntags:\n{tags}\n---\n\n# {name}\n\nA re-ranker.\n\n```python\n{code}\n```\n"
