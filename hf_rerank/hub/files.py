"""Finds one file of a saved model: in a folder, or in a repository on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError


def model_file(source: str | Path, name: str, **hub_options: Any) -> Path:
    """The path of the file ``name`` in ``source``.

    Args:
        source: A folder, or the id of a Hub repository (``"someone/prm-taobao"``).
        name: A file name; fixed by this library, never read from a checkpoint.
        hub_options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Raises:
        InputError: The folder lacks the file, there is no such folder or repository, or it cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        if not path.is_file():
            there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise InputError(
                f"{folder} has no {name} (it holds {there}): expected a folder that save_pretrained wrote"
            )
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(str(source), name, **hub_options))
    except RemoteEntryNotFoundError:
        raise InputError(f"the repository {source} has no {name}: expected what push_to_hub uploads") from None
    except LocalEntryNotFoundError:
        raise InputError(
            f"there is no folder {source}, and of a repository of that name {name} is neither in the cache nor can it "
            "be fetched: check the path, or the connection"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"the repository {source} has no revision {hub_options['revision']!r}") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"there is neither a folder {source} nor a repository of that name that you may read: check the name, or "
            "pass token="
        ) from None
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{source} is neither a folder here nor a repository that can be reached: {reason}") from None
