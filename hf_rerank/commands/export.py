"""``hf-rerank export``: writes a trained re-ranker as an ONNX graph, for ranking without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import add_revision, disable_short_progress_bars, model_options


def add(commands: Any) -> None:
    """Adds the command and its options."""
    export = commands.add_parser("export", help="write a trained re-ranker as an ONNX graph")
    export.add_argument("--model", required=True, metavar="RUN", help="folder or Hub repository of the model")
    export.add_argument("--output-dir", required=True, type=Path, metavar="EXPORTED", help="folder, empty or new")
    add_revision(export)
    export.set_defaults(run=run, parser=export)


def run(options: argparse.Namespace) -> None:
    """Exports, and prints how far the graph's scores are from the model's."""
    from hf_rerank.inference.export import export_onnx
    from hf_rerank.storage.hub_download import GRAPH_FILE

    at = model_options(options.model, options.revision)
    disable_short_progress_bars()
    difference = export_onnx(options.model, options.output_dir, **at)
    size = sum(path.stat().st_size for path in options.output_dir.glob(f"{GRAPH_FILE}*"))
    print(f"{GRAPH_FILE} ({size / 1e6:,.1f} MB), config and processor in {options.output_dir}")
    print(f"scores differ from those of the model by at most {difference:.1g}, on random lists")
    print(f'load it with Reranker.from_pretrained("{options.output_dir}"), or pass it as --model to hf-rerank rank')
