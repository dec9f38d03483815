"""Pushing a re-ranker with its card, figures and results, in one commit."""

from __future__ import annotations

import fnmatch
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.hub.card import model_card
from hf_rerank.hub.figures import FIGURES, draw_figures
from hf_rerank.hub.own_folders import remove_own_folders
from hf_rerank.models.auto import AutoReranker
from hf_rerank.processing import ListProcessor
from hf_rerank.storage import MANIFEST, InputFiles, format_json, read_json, verify
from hf_rerank.storage.hub_repository import open_repository
from hf_rerank.storage.hub_upload import (
    CARD,
    MODEL_FILES,
    PROCESSOR_FILES,
    choose_files,
    commit_files,
    make_plain_card,
)

RESULTS, ARGUMENTS = "results.json", "training_args.json"
# All files that a model repository of this library may contain; anything else in the folder would be a mistake.
PUSHED = (CARD, MANIFEST, *MODEL_FILES, *PROCESSOR_FILES, RESULTS, ARGUMENTS, *FIGURES)


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str = "Upload re-ranker",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tell: Callable[[str], object] | None = None,
) -> Any:
    """Uploads a saved re-ranker: its weights, processor, card with figures, and results; no other files.

    ``results.json`` and ``training_args.json`` are uploaded without local paths (see ``hub.own_folders``); the files
    in the folder stay unchanged.

    Args:
        folder: Folder written by the trainer or ``Reranker.save_pretrained``. It is loaded first: a folder that does
            not load is not pushed. If it has no ``README.md``, the card is made from ``results.json``, with figures
            if matplotlib is installed. Your own card is uploaded unchanged, with the figures in the folder that it
            shows.
        repo_id: ``"someone/name"``, or just the name for a repository of your own.
        commit_message: Commit message.
        private: Create the repository as private; an existing repository must be private.
        token: Hub token. None: the one you logged in with.
        revision: Branch to commit to, created if missing. None: main.
        create_pr: Open a pull request instead.
        tell: Called with one line if the card has no figures because matplotlib is missing. None: a UserWarning.

    Returns:
        The ``CommitInfo``.

    Raises:
        InputError: The folder does not contain a complete re-ranker, or changes during the upload; or the Hub refuses
            or fails. Nothing was committed then, unless the message says that this is unknown.
    """
    folder = Path(folder)
    inputs = InputFiles(path for path in folder.glob("[!.]*") if path.is_file())
    _refuse_unfit(folder)
    repository = open_repository(
        repo_id, "model", private=private, revision=revision, create_pr=create_pr, token=token
    )
    files = files_to_push(folder)
    if CARD not in files:
        files |= _card_and_figures(folder, repository.repo_id, tell or _warn)
    return commit_files(repository, files, owned=PUSHED, message=commit_message, inputs=inputs)


def save_and_push(save: Callable[[Path], object], repo_id: str, *, commit_message: str, **options: Any) -> Any:
    """Uploads the re-ranker that ``save`` writes into an empty folder, as ``push_model``.

    Args:
        save: Writes the re-ranker into the given folder.
        repo_id: ``"someone/name"``, or just the name for a repository of your own.
        commit_message: Commit message.
        options: ``private``, ``token``, ``revision``, ``create_pr``, as in ``push_model``.
    """
    with tempfile.TemporaryDirectory() as name:
        save(Path(name))
        return push_model(name, repo_id, commit_message=commit_message, **options)


def files_to_push(folder: Path) -> dict[str, Path | bytes]:
    """Returns the files of a saved folder that a push uploads, except the manifest: name -> file or content.

    The card is included if the folder has one, with the figures that it shows. ``results.json`` and
    ``training_args.json`` are returned without local paths.
    """
    files: dict[str, Path | bytes] = {**choose_files(folder, PUSHED)}
    for name in (RESULTS, ARGUMENTS):
        if name in files:
            files[name] = _clean(folder / name)
    shown = (folder / CARD).read_text(encoding="utf-8") if CARD in files else ""
    return {name: content for name, content in files.items() if name not in FIGURES or name in shown}


def _clean(path: Path) -> bytes:
    return format_json(remove_own_folders(read_json(path))).encode()


def _refuse_unfit(folder: Path) -> None:
    """Refuses a folder from which no re-ranker could be loaded, or whose weights are not finite."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: expected one that the trainer or save_pretrained wrote")
    # Figures that were drawn into the folder later are not in the manifest.
    saved = [pattern for pattern in PUSHED if pattern not in FIGURES]
    verify(folder, lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in saved), "save it again")
    model, processor = AutoReranker.from_pretrained(folder), ListProcessor.from_pretrained(folder)
    processor.check_fingerprint(model.config.schema_fingerprint, "the model")
    model.refuse_non_finite_weights("so the model is not pushed; train it again")


def _card_and_figures(folder: Path, repo_id: str, tell: Callable[[str], object]) -> dict[str, Path | bytes]:
    """Makes a card, from ``results.json`` if that exists, and the figures that it shows."""
    path = folder / RESULTS
    if not path.is_file():
        return {CARD: make_plain_card(repo_id).encode()}
    results = remove_own_folders(read_json(path))
    figures: dict[str, Path | bytes] = {}
    try:
        figures |= draw_figures(results)
    except InputError as error:
        tell(f"the card has no figures: {error}")
    return {CARD: model_card(repo_id, results, figures=figures).encode(), **figures}


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=4)
