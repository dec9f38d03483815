"""Tells the id of a repository on the Hub from a misspelled path; and makes one quick request."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError

_SHOWN = 5


def looks_local(source: str | Path) -> bool:
    """Whether a source that is not an existing file or folder is a misspelled path rather than the id of a repository.

    The id of a repository is ``someone/name``; it is taken for a path if there is a folder ``someone`` here.
    """
    text = str(source)
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is None or Path(text).parent.is_dir()


def refuse_local_path(source: str | Path) -> None:
    """Raises an ``InputError`` for a path that does not exist, without a request to the Hub."""
    if not looks_local(source):
        return
    parent = Path(source).expanduser().parent
    if parent.is_dir():
        names = sorted(entry.name for entry in parent.iterdir())
        more = ", ..." if len(names) > _SHOWN else ""
        there = f" ({parent.absolute()} holds {', '.join(names[:_SHOWN])}{more})" if names else ""
    else:
        there = f" ({parent} does not exist either)"
    raise InputError(
        f"{source} is neither a folder here nor a repository of the Hub{there}: check the name; a repository is "
        "named someone/name, where no folder here is called someone"
    )


def ask_once(repo_id: str, name: str, **hub_options: Any) -> None:
    """Requests a file of a repository that is not in the cache yet, without the client's retries.

    With them, a wrong name would take half a minute where the Hub cannot be reached.

    Args:
        repo_id: ``someone/name``.
        name: Name of the file.
        hub_options: As for ``hf_rerank.storage.hub_download.find_model_file``.

    Raises:
        HfHubHTTPError: The Hub refuses the request; an internal error of the Hub is left to the client, which retries.
        LocalEntryNotFoundError: The Hub cannot be reached.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    kind = hub_options.get("repo_type") or "model"
    cache = Path(hub_options.get("cache_dir") or constants.HF_HUB_CACHE).expanduser()
    known = (cache / repo_folder_name(repo_id=repo_id, repo_type=kind)).exists()
    if known or constants.HF_HUB_OFFLINE or hub_options.get("local_files_only"):
        return
    url = hf_hub_url(repo_id, name, repo_type=kind, revision=hub_options.get("revision"))
    try:
        get_hf_file_metadata(url, token=hub_options.get("token"))
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500 and status not in (408, 429):
            raise
    except HTTPError as error:
        raise LocalEntryNotFoundError(str(error)) from error
