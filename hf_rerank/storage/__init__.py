"""Bytes on the disk: atomic writes, digests, JSON files, locks, manifests. No models, no torch, no transformers."""

from hf_rerank.storage.atomic import (
    remove,
    remove_leftovers,
    sync,
    sync_tree,
    temporary_path,
    write_file,
    writing,
)
from hf_rerank.storage.digests import sha256_of_file, sha256_of_json
from hf_rerank.storage.disk_errors import CannotWrite, naming_failures, open_files
from hf_rerank.storage.inputs import InputFiles, content_digest, refuse_output_over_input
from hf_rerank.storage.json_files import json_text, json_values, parse_json_object, read_json, write_json
from hf_rerank.storage.locks import locked
from hf_rerank.storage.manifest import MANIFEST, manifest_text, read_manifest, saved_files, verify, write_manifest
from hf_rerank.storage.output_folder import new_folder, only_writer, refuse_filled, with_a_name
from hf_rerank.storage.safetensors_files import number_formats, read_arrays
from hf_rerank.storage.saved_folder import model_files, replace_file, replacing

__all__ = [
    "MANIFEST",
    "CannotWrite",
    "InputFiles",
    "content_digest",
    "json_text",
    "json_values",
    "locked",
    "manifest_text",
    "model_files",
    "naming_failures",
    "new_folder",
    "number_formats",
    "only_writer",
    "open_files",
    "parse_json_object",
    "read_arrays",
    "read_json",
    "read_manifest",
    "refuse_filled",
    "refuse_output_over_input",
    "remove",
    "remove_leftovers",
    "replace_file",
    "replacing",
    "saved_files",
    "sha256_of_file",
    "sha256_of_json",
    "sync",
    "sync_tree",
    "temporary_path",
    "verify",
    "with_a_name",
    "write_file",
    "write_json",
    "write_manifest",
    "writing",
]
