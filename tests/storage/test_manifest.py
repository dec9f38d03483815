"""The manifest of a saved folder: its content, and the changes that it detects."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from hf_rerank.errors import InputError
from hf_rerank.storage import (
    MANIFEST,
    name_failures,
    read_manifest,
    read_number_formats,
    replace_file,
    save_files,
    verify,
)
from hf_rerank.storage import write_manifest as write

FILES = {"a.json": b"{}\n", "b.safetensors": b"\x00" * 9, "deep/c.pt": b"weights"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "folder" / "README.md").write_text("people may change it")
    write(tmp_path / "folder", step=7)
    return tmp_path / "folder"


def everything(name: str) -> bool:
    return True


def test_manifest_holds_size_and_digest_of_every_file(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()
    }
    own = content.pop("sha256")
    assert content == {"format_version": 1, "step": 7, "files": files}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert own == hashlib.sha256(canonical.encode()).hexdigest()
    assert read_manifest(folder) == verify(folder, everything, "") == content
    (folder / "README.md").write_text("changed")
    verify(folder, everything, "")


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_and_truncation_of_a_file_is_refused(folder: Path, name: str) -> None:
    path, refused = folder / name, 0
    content = path.read_bytes()
    damaged = [content[:length] for length in range(len(content))] + [content + b"\0"]
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for change in damaged:
        path.write_bytes(change)
        with pytest.raises(InputError, match=path.name):
            verify(folder, everything, "")
        refused += 1
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name} is missing.*do this"):
        verify(folder, everything, "do this")
    assert refused == 9 * len(content) + 1
    # Files that will not be read are not checked.
    verify(folder, lambda other: other != name, "")


@pytest.mark.slow
def test_flipped_bits_and_truncations_of_the_manifest_are_refused(folder: Path) -> None:
    path, expected, refused = folder / MANIFEST, read_manifest(folder), 0
    content = path.read_bytes()
    damaged = [content[:length] for length in range(len(content) - 1)]  # the last character is a line break
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for change in damaged:
        path.write_bytes(change)
        try:
            found = read_manifest(folder)
        except InputError as error:
            refused += 1
            message = str(error)
            assert f"{path} is damaged" in message
        else:
            assert found == expected, "the same content, such as a tab for a blank"
    assert refused > 0.98 * len(damaged)


def test_file_that_was_not_saved_with_the_folder_is_refused(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors is not one of the files that were saved"):
        verify(folder, lambda name: name.endswith(".safetensors"), "")
    verify(folder, lambda name: name.endswith(".json"), "")


def test_newer_manifest_format_is_refused(folder: Path) -> None:
    content = {"format_version": 2, "files": {}}
    own = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**content, "sha256": own}))
    with pytest.raises(InputError, match=r"format_version 2, but this library reads 1: install a newer hf-rerank"):
        read_manifest(folder)


def test_without_a_manifest_nothing_is_checked(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert read_manifest(folder) is None
    assert verify(folder, everything, "") is None


def test_saving_again_removes_old_weight_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for names in (
        ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "x.json"],
        ["model.safetensors"],
    ):
        with save_files(folder) as staging:
            assert staging.parent == folder
            for name in names:
                (staging / name).write_text("content")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "x.json", MANIFEST}
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["files"].keys() == {"model.safetensors"}


def test_interrupted_save_is_refused_instead_of_mixing_old_and_new_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each rename in turn: the files that are there are all old, all new, or refused."""
    rename = os.replace
    for stop in range(1, 5):
        folder = tmp_path / str(stop)
        for version in ("old", "new"):
            done = 0

            def counting(source: Path, target: Path) -> None:
                nonlocal done
                done += 1
                if version == "new" and done == stop:  # noqa: B023
                    raise KeyboardInterrupt
                rename(source, target)

            monkeypatch.setattr(os, "replace", counting)
            try:
                with save_files(folder) as staging:
                    for name in ("a.json", "b.safetensors", "c.json"):
                        (staging / name).write_text(version)
            except KeyboardInterrupt:
                assert version == "new"
        found = {path.read_text() for path in folder.iterdir() if path.name != MANIFEST}
        if stop == 1:
            assert found == {"old"}
            verify(folder, everything, "")
        else:
            assert "old" in found
            with pytest.raises(InputError, match="damaged or changed"):
                verify(folder, everything, "")
        assert not list(folder.glob(".*"))


def test_replacing_a_file_changes_only_the_file_and_the_manifest(folder: Path) -> None:
    untouched = {name: (folder / name).read_bytes() for name in ("b.safetensors", "deep/c.pt", "README.md")}
    replace_file(folder, "a.json", lambda _: b"[1, 2]")
    after = (folder / MANIFEST).read_bytes()
    assert (folder / "a.json").read_bytes() == b"[1, 2]"
    assert {name: (folder / name).read_bytes() for name in untouched} == untouched
    assert not list(folder.glob(".*"))
    manifest = verify(folder, everything, "")
    assert manifest is not None
    assert manifest["step"] == 7
    assert manifest["files"]["a.json"] == {"bytes": 6, "sha256": hashlib.sha256(b"[1, 2]").hexdigest()}
    write(folder, step=7)
    assert (folder / MANIFEST).read_bytes() == after


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("stop", range(1, 10))
def test_folder_stays_valid_when_killed_while_replacing_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, stop: int
) -> None:
    """Killed at each rename and each sync: the folder is valid, and the file can be replaced again afterwards."""
    real, done = getattr(os, call), 0

    class Killed(BaseException):
        pass

    def counting(*arguments: object) -> None:
        nonlocal done
        done += 1
        if done == stop:
            raise Killed
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, counting)
        for module in ("atomic", "saved_folder"):  # a killed process cleans nothing up
            patch.setattr(f"hf_rerank.storage.{module}.remove", lambda *_: None)
        try:
            replace_file(folder, "a.json", lambda _: b"new")
            assert done < stop
        except Killed:
            pass
    found = (folder / "a.json").read_bytes()
    assert found in (FILES["a.json"], b"new")
    verify(folder, everything, "")
    (folder / "a.json").write_bytes(b"nem")
    with pytest.raises(InputError, match=r"a\.json is damaged or changed"):
        verify(folder, everything, "")
    (folder / "a.json").write_bytes(found)
    for content in (b"newer", b"new"):
        replace_file(folder, "a.json", lambda _: content)  # noqa: B023
        manifest = verify(folder, everything, "")
        assert manifest is not None
        assert manifest["files"]["a.json"] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_folder_stays_valid_after_two_interrupted_replacements(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First before the last rename, when the file is already new; then before the second, when it still is."""
    rename = os.replace
    for content, before in ((b"new", 3), (b"newer", 2)):
        done = 0

        def stopping(source: Path, target: Path) -> None:
            nonlocal done
            done += 1
            if done == before:  # noqa: B023
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopping)
            with pytest.raises(KeyboardInterrupt):
                replace_file(folder, "a.json", lambda _: content)  # noqa: B023
        assert (folder / "a.json").read_bytes() == b"new"
        verify(folder, everything, "")


def test_a_damaged_file_is_not_replaced(folder: Path) -> None:
    (folder / "a.json").write_bytes(b"{]\n")
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(InputError, match=r"a\.json is damaged or changed"):
        replace_file(folder, "a.json", lambda _: b"new")
    assert (folder / MANIFEST).read_bytes() == before


def test_full_disk_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"manifest.json could not be written.*No space left"):
            replace_file(folder, "a.json", lambda _: b"new")
    verify(folder, everything, "")
    assert (folder / "a.json").read_bytes() == FILES["a.json"]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("unexpected pos 64 vs 0")])
def test_failed_write_error_names_the_folder_and_the_space_needed(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(OSError, match=r"deep/folder could not be written: about 12\.5 MB are needed, .* MB are free"),
        name_failures(tmp_path / "deep" / "folder", 12_500_000),
    ):
        raise error
    with pytest.raises(ZeroDivisionError), name_failures(tmp_path):
        _ = 1 / 0


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            header('{"w":{"dtype":"U8","shape":[0]},"w":{"dtype":"U8","shape":[0]}}'),
            r"header of .*w.safetensors names 'w' twice",
        ),
        (header('{"w":{"dtype":"U8","dtype":"F32"}}'), r"header of .*w.safetensors names 'dtype' twice"),
        (header('{"w": 1'), r"header of .*w.safetensors is not valid JSON"),
        (b"", r"header of .*w.safetensors is damaged: it claims to have 0 bytes"),
        (b"\xff" * 20, r"header of .*w.safetensors is damaged: it claims to have 18,446,744"),
    ],
)
def test_invalid_safetensors_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_number_formats(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_replaced_during_verification_is_accepted(folder: Path) -> None:
    """Another process replaces the file and its entry after the manifest was read."""
    replaced = []

    def reads(name: str) -> bool:
        if not replaced:
            replaced.append(name)
            replace_file(folder, "a.json", lambda _: b"longer than before")
        return name == "a.json"

    manifest = verify(folder, reads, "save it again")
    assert replaced
    assert manifest is not None
    assert manifest["files"]["a.json"]["bytes"] == len(b"longer than before")
    (folder / "a.json").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"a\.json has 7 bytes, but 18 were saved"):
        verify(folder, reads, "save it again")
