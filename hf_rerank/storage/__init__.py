"""Bytes on the disk: atomic writes, digests, JSON files, locks, manifests. No models, no torch, no transformers."""

from hf_rerank.storage.atomic import (
    remove,
    remove_leftovers,
    share_with_readers,
    sync,
    sync_tree,
    temporary_path,
    write_atomically,
    write_file,
)
from hf_rerank.storage.digests import sha256_of_file, sha256_of_json
from hf_rerank.storage.disk_errors import CannotWrite, name_failures, open_files
from hf_rerank.storage.inputs import InputFiles, digest_content, refuse_output_over_input
from hf_rerank.storage.json_files import format_json, parse_json_object, read_json, to_json_values, write_json
from hf_rerank.storage.locks import hold_lock
from hf_rerank.storage.manifest import MANIFEST, list_saved_files, make_manifest, read_manifest, verify, write_manifest
from hf_rerank.storage.output_folder import create_folder, ensure_name, lock_output, refuse_nonempty
from hf_rerank.storage.safetensors_files import read_arrays, read_number_formats, write_arrays
from hf_rerank.storage.saved_folder import note_model_files, replace_file, save_files

__all__ = [
    "MANIFEST",
    "CannotWrite",
    "InputFiles",
    "create_folder",
    "digest_content",
    "ensure_name",
    "format_json",
    "hold_lock",
    "list_saved_files",
    "lock_output",
    "make_manifest",
    "name_failures",
    "note_model_files",
    "open_files",
    "parse_json_object",
    "read_arrays",
    "read_json",
    "read_manifest",
    "read_number_formats",
    "refuse_nonempty",
    "refuse_output_over_input",
    "remove",
    "remove_leftovers",
    "replace_file",
    "save_files",
    "sha256_of_file",
    "sha256_of_json",
    "share_with_readers",
    "sync",
    "sync_tree",
    "temporary_path",
    "to_json_values",
    "verify",
    "write_arrays",
    "write_atomically",
    "write_file",
    "write_json",
    "write_manifest",
]
