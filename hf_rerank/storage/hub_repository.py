"""A repository on the Hub to push to: created if needed, inspected, changed by one commit or not at all."""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.storage import MANIFEST, InputFiles, read_manifest
from hf_rerank.storage.hub_errors import is_unknown_outcome, report_hub_errors

MAIN = "main"
# Files that the Hub puts into a new repository, and files that people write there themselves.
_OF_ANYBODY = (".gitattributes", "README.md", "LICENSE")
NOTHING_COMMITTED = "Nothing was committed: the repository is as it was; large files that arrived are not sent again"
UNKNOWN_COMMIT = "It is unknown whether the commit arrived: rerun the same command, which commits nothing if it did"


@dataclass(frozen=True)
class Repository:
    """A repository as it was when it was opened.

    Attributes:
        repo_id: ``"someone/name"``.
        kind: ``model`` or ``dataset``.
        branch: Branch to commit to.
        head: Commit of the branch at that time.
        files: The names of its files.
        token: Token for the Hub. None: the one the user logged in with.
        create_pr: Commit to a new pull request instead.
    """

    repo_id: str
    kind: str
    branch: str
    head: str
    files: list[str]
    token: str | None
    create_pr: bool

    def commit(
        self,
        files: Mapping[str, Path | bytes],
        *,
        owned: Sequence[str],
        message: str,
        inputs: InputFiles | None = None,
    ) -> Any:
        """Uploads files as one commit, which also deletes the files of an earlier push that are not among them.

        ``HfApi.upload_folder`` is not used: with hf_xet it makes several commits of a large folder.

        Args:
            files: Name in the repository -> a file, or its content.
            owned: Patterns of names that a push may remove.
            message: Commit message.
            inputs: Files that must not change before the upload is complete; otherwise nothing is committed.

        Returns:
            The ``CommitInfo``.

        Raises:
            InputError: The commit failed, or an input has changed; the repository is unchanged unless the message says
                that this is not known.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(token=self.token)
        where = f"{self.kind} repository {self.repo_id}"
        additions = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        stale = [
            CommitOperationDelete(name)
            for name in self.files
            if name not in files and any(fnmatch.fnmatch(name, pattern) for pattern in owned)
        ]
        options: dict[str, Any] = {"repo_type": self.kind, "create_pr": self.create_pr}
        if not self.create_pr:
            options["revision"] = self.branch
        with report_hub_errors(
            f"files could not be sent to the {where}", token=self.token, kept=_say_nothing_committed
        ):
            api.preupload_lfs_files(self.repo_id, additions, free_memory=False, **options)
        if inputs is not None:
            inputs.refuse_changes()
        with report_hub_errors(f"the {where} got the files but no commit", token=self.token, kept=_describe_outcome):
            return api.create_commit(
                self.repo_id, [*stale, *additions], commit_message=message, parent_commit=self.head, **options
            )

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest at the commit ``head``; None without one."""
        if MANIFEST not in self.files:
            return None
        from huggingface_hub import hf_hub_download

        with tempfile.TemporaryDirectory() as folder:
            with report_hub_errors(f"{MANIFEST} of {self.repo_id} could not be read", token=self.token):
                hf_hub_download(
                    self.repo_id,
                    MANIFEST,
                    repo_type=self.kind,
                    revision=self.head,
                    token=self.token,
                    local_dir=folder,
                )
            return read_manifest(Path(folder))


def open_repository(
    repo_id: str,
    kind: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> Repository:
    """Creates a repository and a branch if they do not exist, and lists the repository's files.

    Args:
        repo_id: ``"someone/name"``, or a name in your own namespace.
        kind: ``model`` or ``dataset``.
        private: Create the repository as private, or require that an existing one is.
        revision: Branch to commit to. None: main.
        create_pr: Commit to a new pull request instead, which needs no write access.
        token: Token for the Hub. None: the one the user logged in with.

    Raises:
        InputError: The Hub cannot be reached or refuses access; the repository is public, although ``private`` was
            requested, or contains files that this library did not push.
    """
    from huggingface_hub import HfApi

    if create_pr and revision not in (None, MAIN):
        raise InputError("a pull request goes to main: give either a revision or create_pr, not both")
    if not repo_id:
        raise InputError("repo_id is empty: expected 'someone/name', or a name in your own namespace")
    api, branch = HfApi(token=token), revision or MAIN
    what = f"the {kind} repository {repo_id} could not be opened"
    with report_hub_errors(what, token=token):
        url = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        whole = url.repo_id
        if url.repo_type != kind:
            raise InputError(f"{whole} is a {url.repo_type} repository: choose another name to push a {kind}")
        if branch != MAIN and not branch.startswith("refs/"):
            api.create_branch(whole, branch=branch, repo_type=kind, exist_ok=True)
        info: Any = api.repo_info(whole, repo_type=kind, revision=branch)
    if private and info.private is False:
        raise InputError(
            f"{whole} exists and is public: make it private in its settings, or choose another name. Nothing was sent"
        )
    names = sorted(sibling.rfilename for sibling in info.siblings or [])
    if ".gitignore" in names:
        # The client silently leaves out the files that it names.
        raise InputError(f"{whole} has a .gitignore, which may keep files out: remove it there. Nothing was sent")
    foreign = [name for name in names if name not in _OF_ANYBODY]
    if foreign and MANIFEST not in names:
        raise InputError(
            f"{whole} holds something else (such as {', '.join(foreign[:3])}, and no {MANIFEST}): choose another "
            "name, or another branch. Nothing was sent"
        )
    return Repository(whole, kind, branch, info.sha, names, token, create_pr)


def _say_nothing_committed(error: BaseException) -> str:
    return NOTHING_COMMITTED


def _describe_outcome(error: BaseException) -> str:
    return UNKNOWN_COMMIT if is_unknown_outcome(error) else NOTHING_COMMITTED
