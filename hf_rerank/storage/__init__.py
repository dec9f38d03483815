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
from hf_rerank.storage.disk_errors import CannotWrite, naming_failures
from hf_rerank.storage.inputs import InputFiles, content_digest, refuse_output_over_input
from hf_rerank.storage.json_files import json_text, json_values, parse_json_object, read_json, write_json
from hf_rerank.storage.locks import locked
from hf_rerank.storage.manifest import MANIFEST, manifest_text, read_manifest, verify, write_manifest
from hf_rerank.storage.safetensors_files import number_formats, read_arrays
from hf_rerank.storage.saved_folder import replace_file, replacing

__all__ = [
    "MANIFEST",
    "CannotWrite",
    "InputFiles",
    "content_digest",
    "json_text",
    "json_values",
    "locked",
    "manifest_text",
    "naming_failures",
    "number_formats",
    "parse_json_object",
    "read_arrays",
    "read_json",
    "read_manifest",
    "refuse_output_over_input",
    "remove",
    "remove_leftovers",
    "replace_file",
    "replacing",
    "sha256_of_file",
    "sha256_of_json",
    "sync",
    "sync_tree",
    "temporary_path",
    "verify",
    "write_file",
    "write_json",
    "write_manifest",
    "writing",
]
