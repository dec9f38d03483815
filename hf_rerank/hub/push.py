"""What a repository of ours holds, and pushing it: a re-ranker, part of one, or prepared lists; one commit or none."""

from __future__ import annotations

import fnmatch
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.hub.card import model_card, plain_model_card
from hf_rerank.hub.figures import FIGURES, drawn_figures
from hf_rerank.hub.own_folders import without_own_folders
from hf_rerank.hub.repository import Repository, open_repository
from hf_rerank.storage import MANIFEST, manifest_text, verify

CARD = "README.md"
RESULTS, ARGUMENTS = "results.json", "training_args.json"
# All that a model repository of ours may hold; anything else in the folder would be a mistake.
PUSHED = (
    CARD,
    "config.json",
    MANIFEST,
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "vocabularies.safetensors",
    RESULTS,
    ARGUMENTS,
    *FIGURES,
)
# And a repository of prepared lists. Damaged lines and the models that made columns stay at home.
PUSHED_LISTS = (CARD, "schema.json", "report.json", MANIFEST, "*-?????-of-?????.parquet")
LOCAL_FOLDER = "path/to/this/folder"


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
    """Uploads a saved re-ranker: its weights, processor, card with figures, and results; nothing else of the folder.

    ``results.json`` and ``training_args.json`` are sent without the folders of this machine (see
    ``hub.own_folders``); in the folder they stay as they are.

    Args:
        folder: That the trainer or ``Reranker.save_pretrained`` wrote. It is loaded first: what does not load is not
            pushed. Without a ``README.md`` in it the card is made of ``results.json``, with figures if matplotlib is
            there. A card of your own is sent as it is, with those of the figures in the folder that it shows.
        repo_id: ``"someone/name"``, or a name of your own.
        commit_message: Of the commit.
        private: A repository that this creates is private; one that is there must be.
        token: None: the one you logged in with.
        revision: Branch to commit to, made if there is none. None: main.
        create_pr: Open a pull request instead.
        tell: Gets a line if the card goes without figures because matplotlib is missing. None: it is a UserWarning.

    Returns:
        The ``CommitInfo``.

    Raises:
        InputError: The folder holds no whole re-ranker, or the Hub refuses or fails; then nothing was committed,
            unless the message says that this is not known.
    """
    folder = Path(folder)
    _refuse_unfit(folder)
    repository = open_repository(
        repo_id, "model", private=private, revision=revision, create_pr=create_pr, token=token
    )
    files = _model_files(folder)
    if CARD not in files:
        files |= _card_and_figures(folder, repository.repo_id, tell or _warn)
    return _commit(repository, files, PUSHED, commit_message)


def push_saved(
    save: Callable[[Path], object],
    repo_id: str,
    *,
    part: bool = False,
    commit_message: str,
    **options: Any,
) -> Any:
    """Uploads what ``save`` writes into an empty folder: a re-ranker as ``push_model``, or one part of it.

    Args:
        save: Writes into the folder that it is given.
        repo_id: As of ``push_model``.
        part: Only the model, or only the processor: the other files of the repository stay.
        commit_message: Of the commit.
        options: ``private``, ``token``, ``revision``, ``create_pr``, as of ``push_model``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        if not part:
            return push_model(folder, repo_id, commit_message=commit_message, **options)
        repository = open_repository(repo_id, "model", **options)
        files = _model_files(folder)
        owned = tuple(files) if "config.json" not in files else (*files, "model.safetensors*", "model-*.safetensors")
        if CARD not in repository.files:
            files[CARD] = plain_model_card(repository.repo_id).encode()
        return _commit(repository, files, owned, commit_message)


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
        folder: Of prepared lists.
        repo_id: As of ``push_model``, like those that follow.
        have_the_right_to_redistribute: You have the owner's leave to pass on lists whose card says that they may not
            be redistributed. A private repository is no way around: the lists leave your machine all the same.

    Returns:
        The ``CommitInfo``.

    Raises:
        InputError: The folder holds no whole prepared lists, they may not be redistributed, or as ``push_model``.
    """
    from hf_rerank.data.prepared import NO_REDISTRIBUTION, licence_of, read_prepared, refuse_unfinished

    folder = Path(folder)
    refuse_unfinished(folder)
    if not (folder / "schema.json").is_file():
        raise InputError(f"{folder} is no folder of prepared lists (it has no schema.json): see hf-rerank prepare")
    read_prepared(folder)
    licence = licence_of(folder)
    if licence is None:
        raise InputError(
            f"{folder} does not say who may redistribute its lists (no licence in {CARD}): prepare the lists again, "
            f"or write a section '## Licence' into {CARD}"
        )
    if licence == NO_REDISTRIBUTION and not have_the_right_to_redistribute:
        raise InputError(
            f"the lists in {folder} may not be redistributed (see Licence in {CARD}), and a push, also a private one, "
            "would breach that. Push simulated lists, or the model only; if the owner of the data gave you leave, say "
            "so: have_the_right_to_redistribute=True (--i-have-the-right-to-redistribute)"
        )
    repository = open_repository(
        repo_id, "dataset", private=private, revision=revision, create_pr=create_pr, token=token
    )
    files: dict[str, Path | bytes] = {**_chosen(folder, PUSHED_LISTS)}
    card = (folder / CARD).read_text(encoding="utf-8")
    files[CARD] = card.replace(LOCAL_FOLDER, repository.repo_id).encode()
    return _commit(repository, files, PUSHED_LISTS, commit_message)


def _chosen(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """The files of a folder that are pushed; the manifest is made anew."""
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST and any(fnmatch.fnmatch(path.name, name) for name in patterns)
    }


def _model_files(folder: Path) -> dict[str, Path | bytes]:
    """The files of a model that are pushed, its own card included; the figures of a card are those that it shows."""
    files: dict[str, Path | bytes] = {**_chosen(folder, PUSHED)}
    for name in (RESULTS, ARGUMENTS):
        if name in files:
            files[name] = _cleaned(folder / name)
    shown = (folder / CARD).read_text(encoding="utf-8") if CARD in files else ""
    return {name: content for name, content in files.items() if name not in FIGURES or name in shown}


def _cleaned(path: Path) -> bytes:
    from hf_rerank.storage import json_text, read_json

    return json_text(without_own_folders(read_json(path))).encode()


def _commit(repository: Repository, files: dict[str, Path | bytes], owned: Sequence[str], message: str) -> Any:
    """Commits files, with a manifest of them and of what else of ours the repository keeps."""
    kept = {}
    earlier = repository.manifest()
    if earlier is not None:
        kept = {
            name: about
            for name, about in earlier["files"].items()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in owned)
        }
    return repository.commit({**files, MANIFEST: manifest_text(files, kept).encode()}, owned=owned, message=message)


def _refuse_unfit(folder: Path) -> None:
    """Refuses a folder from which no re-ranker could be loaded, or whose weights are not finite."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: expected one that the trainer or save_pretrained wrote")
    from hf_rerank.reranker import Reranker

    # Figures that somebody drew into the folder are no part of what was saved.
    saved = [pattern for pattern in PUSHED if pattern not in FIGURES]
    verify(folder, lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in saved), "save it again")
    refuse_broken_weights(Reranker.from_pretrained(folder).model, str(folder))


def refuse_broken_weights(model: Any, where: str) -> None:
    """Refuses a model with weights that are not finite."""
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise InputError(f"weights {name} of {where} are not finite: such a model is not pushed; train it again")


def _card_and_figures(folder: Path, repo_id: str, tell: Callable[[str], object]) -> dict[str, Path | bytes]:
    """A card, from ``results.json`` where there is one, and the figures that it shows."""
    from hf_rerank.storage import read_json

    path = folder / RESULTS
    if not path.is_file():
        return {CARD: plain_model_card(repo_id).encode()}
    results = without_own_folders(read_json(path))
    figures: dict[str, Path | bytes] = {}
    try:
        figures |= drawn_figures(results)
    except InputError as error:
        tell(f"the card has no figures: {error}")
    return {CARD: model_card(repo_id, results, figures=figures).encode(), **figures}


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=4)
