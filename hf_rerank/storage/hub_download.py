"""Finds the files of a saved model, in a folder or in a repository on the Hub, and verifies that they are complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.storage import MANIFEST, read_json, read_manifest, read_number_formats, verify
from hf_rerank.storage.hub_errors import LOG_IN, explain_error, hide_tokens
from hf_rerank.storage.hub_names import ask_once, refuse_local_path

REMEDY = "save or download it again"
WEIGHTS_FILE, GRAPH_FILE = "model.safetensors", "model.onnx"
# Which version of a repository, and how its files are fetched; named as huggingface_hub names them.
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def fetch_verified_folder(
    source: str | Path, names: Sequence[str], *, reads: Callable[[str], bool] | None = None, **hub_options: Any
) -> Path:
    """The folder with these files, fetched from the Hub if needed and verified against its manifest if it has one.

    Args:
        source: A folder, or the id of a Hub repository.
        names: Files that must be there; fixed by this library, never read from a checkpoint.
        reads: ``name -> bool``, which other files of the folder will be read. None: no others.
        hub_options: As for ``find_model_file``.

    Raises:
        InputError: As in ``find_model_file``; or a file is truncated, changed, or not one of those that were saved.
    """
    hub_options = pin_commit(source, names[0], **hub_options)
    folder = find_model_file(source, names[0], **hub_options).parent
    remote = not Path(source).is_dir()
    if remote:
        _fetch_if_present(source, MANIFEST, **hub_options)
    for name in names[1:]:
        find_model_file(source, name, **hub_options)

    def is_read(name: str) -> bool:
        return name in names or (reads is not None and reads(name))

    remedy = describe_repair(source, folder.name) if remote else REMEDY
    if remote and (manifest := read_manifest(folder, remedy)) is not None:
        for name in manifest["files"]:
            if is_read(name):
                find_model_file(source, name, **hub_options)
    verify(folder, is_read, remedy)
    return folder


def pin_commit(source: str | Path, name: str, **hub_options: Any) -> dict[str, Any]:
    """Resolves the revision of a repository to its commit, so that all files come from the same one.

    Returns:
        The options with ``revision`` set to the commit.

    Args:
        source: A folder, for which the options are returned unchanged; or the id of a Hub repository.
        name: A file that must be there.
        hub_options: As for ``find_model_file``.
    """
    refuse_no_source(source)
    if Path(source).is_dir():
        return hub_options
    # The Hub's cache keeps the files of a commit in a folder of its name.
    return {**hub_options, "revision": find_model_file(source, name, **hub_options).parent.name}


def refuse_no_source(source: Any) -> None:
    """Raises an InputError for a source that is neither a folder nor the id of a repository."""
    if not isinstance(source, str | PathLike):
        raise InputError(f"expected a folder, or the id of a repository, got {type(source).__name__}")
    if not str(source):
        raise InputError("expected a folder, or the id of a repository, got an empty string")
    if Path(source).is_file():
        raise InputError(f"{source} is a file: expected the folder that holds it")


def describe_repair(source: str | Path, commit: str, kind: str = "model") -> str:
    """The command that fetches a commit into the cache again, replacing the files there."""
    of_kind = "" if kind == "model" else f" --repo-type {kind}"
    return f"fetch it again: hf download {source}{of_kind} --revision {commit} --force-download"


@dataclass(frozen=True)
class SavedWeights:
    """The weights in a folder.

    Attributes:
        folder: The folder that contains ``config.json``.
        bytes: Total size of the weight files.
        formats: Tensor -> its number format as safetensors names it (``F32``, ``BF16``, ``I64``, ...).
    """

    folder: Path
    bytes: int
    formats: dict[str, str]


def find_weights_folder(source: str | Path, *, variant: str | None = None, **hub_options: Any) -> Path:
    """The folder of ``find_saved_weights``."""
    return find_saved_weights(source, variant=variant, **hub_options).folder


def find_saved_weights(source: str | Path, *, variant: str | None = None, **hub_options: Any) -> SavedWeights:
    """The folder with a model's config and weights, verified by ``fetch_verified_folder``; no other weights are read.

    Raises:
        InputError: As in ``fetch_verified_folder``; the shard index names a file outside the folder; a tensor has two
            entries; or the folder holds an adapter, which names another model to load.
    """
    suffix = f".{variant}.safetensors" if variant else ".safetensors"
    weights, index = f"model{suffix}", f"model{suffix}.index.json"
    folder = fetch_verified_folder(source, ["config.json"], reads=_holds_weights, **hub_options)
    remote = not Path(source).is_dir()
    if remote:
        hub_options = {**hub_options, "revision": folder.name}
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder / 'adapter_config.json'} names another model: expected a complete re-ranker")
    read_json(folder / "config.json", REMEDY)  # transformers reads it again, without these checks
    if remote and _fetch_if_present(source, weights, **hub_options) is None:
        _fetch_if_present(source, index, **hub_options)
    if (folder / weights).is_file():
        shards = [weights]
    elif (folder / index).is_file():
        shards = _read_shards(folder / index)
    else:
        if weights == WEIGHTS_FILE and _lists_a_graph(folder):
            raise InputError(
                f"{source} holds an exported graph ({GRAPH_FILE}) and no PyTorch weights: give the model that it "
                "was exported from; a graph can only rank, with Reranker.from_pretrained or hf-rerank rank"
            )
        raise InputError(f"{folder} has no {weights}: weights are read from safetensors files only")
    size, formats = 0, dict[str, str]()
    for name in shards:
        path = find_model_file(source, name, **hub_options)
        size += path.stat().st_size
        of_file = read_number_formats(path)
        if twice := formats.keys() & of_file.keys():
            raise InputError(f"{path} holds {min(twice)!r}, which another shard holds too; {REMEDY}")
        formats |= of_file
    return SavedWeights(folder, size, formats)


def holds_only_a_graph(source: str | Path, **hub_options: Any) -> bool:
    """Whether a folder or repository contains an exported graph and no PyTorch weights.

    Args:
        source: A folder, or the id of a Hub repository; its weights, or otherwise its graph, are then fetched.
        hub_options: As for ``find_model_file``, with the commit of ``pin_commit``.

    Raises:
        InputError: The repository cannot be reached.
    """
    weights = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json")
    if Path(source).is_dir():
        return not any((Path(source) / name).is_file() for name in weights) and _lists_a_graph(Path(source))
    if any(_fetch_if_present(source, name, **hub_options) is not None for name in weights):
        return False
    return _fetch_if_present(source, GRAPH_FILE, **hub_options) is not None


def _holds_weights(name: str) -> bool:
    return name.startswith(("model", "adapter_")) and name.endswith((".safetensors", ".json"))


def _lists_a_graph(folder: Path) -> bool:
    """Whether a folder holds an exported graph, or its manifest lists one that was not fetched from the Hub."""
    manifest = read_manifest(folder)
    return (folder / GRAPH_FILE).is_file() or (manifest is not None and GRAPH_FILE in manifest["files"])


def _read_shards(index: Path) -> list[str]:
    """The files that the shard index names, all in the same folder."""
    content = read_json(index, REMEDY)
    shard_of = content.get("weight_map")
    if not isinstance(content.get("metadata"), dict) or not isinstance(shard_of, dict) or not shard_of:
        raise InputError(
            f"{index} is not a shard index: expected an object metadata, and an object weight_map from each tensor "
            f"to its file; {REMEDY}"
        )
    names = list({str(name): name for name in shard_of.values()}.values())
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise InputError(f"{index} names {name!r}: expected .safetensors files in the same folder")
    return names


def _fetch_if_present(source: str | Path, name: str, **hub_options: Any) -> Path | None:
    """The file ``name`` of a Hub repository; None if the repository (or, offline, the cache) lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
    )

    try:
        return Path(hf_hub_download(str(source), name, **hub_options))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        if error.__cause__ is None or isinstance(error.__cause__, OfflineModeIsEnabled):
            return None
        # Whether it exists is unknown: a network failure must not make a model load unchecked.
        raise InputError(_describe_unreachable(source, name, error, hub_options.get("token"))) from None
    except (HTTPError, OSError) as error:
        raise InputError(_describe_failed_fetch(source, name, error, hub_options.get("token"))) from None


def find_model_file(source: str | Path, name: str, **hub_options: Any) -> Path:
    """The path of the file ``name`` in ``source``.

    Args:
        source: A folder, or the id of a Hub repository (``"someone/prm-taobao"``).
        name: A file name; fixed by this library, never read from a checkpoint.
        hub_options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``, ``repo_type``.

    Raises:
        InputError: The folder lacks the file, there is no such folder or repository, or it cannot be reached.
    """
    refuse_no_source(source)
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        if not path.is_file():
            there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise InputError(
                f"{folder} has no {name} (it holds {there}): expected a folder that save_pretrained wrote"
            )
        return path
    refuse_local_path(source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        ask_once(str(source), name, **hub_options)
        return Path(hf_hub_download(str(source), name, **hub_options))
    except RemoteEntryNotFoundError:
        raise InputError(f"the repository {source} has no {name}: expected one that push_to_hub wrote") from None
    except LocalEntryNotFoundError as error:
        raise InputError(_describe_unreachable(source, name, error, hub_options.get("token"))) from None
    except RevisionNotFoundError:
        raise InputError(f"the repository {source} has no revision {hub_options['revision']!r}") from None
    except RepositoryNotFoundError:
        kind = hub_options.get("repo_type") or "model"
        raise InputError(
            f"there is neither a folder {source} nor a {kind} repository of that name that you may read: check the "
            f"name, or {LOG_IN} (in Python also token=)"
        ) from None
    except HFValidationError as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{source} is neither a folder here nor a repository: {said}") from None
    except (HTTPError, OSError) as error:
        raise InputError(_describe_failed_fetch(source, name, error, hub_options.get("token"))) from None


def _describe_failed_fetch(source: str | Path, name: str, error: BaseException, token: Any) -> str:
    """The message for a file that exists, but cannot be fetched."""
    line = f"{name} of the repository {source} cannot be fetched: {explain_error(error, token)}"
    return hide_tokens(line, token)


def _describe_unreachable(source: str | Path, name: str, error: BaseException, token: Any) -> str:
    """The message for a file that is neither in the cache nor reachable on the Hub."""
    if error.__cause__ is None:
        why = "only the cache was searched (local_files_only); leave that out to fetch it"
    else:
        why = explain_error(error.__cause__, token)
    return hide_tokens(
        f"there is no folder {source}, and {name} of a repository of that name is not in the cache and cannot be "
        f"fetched: {why}",
        token,
    )
