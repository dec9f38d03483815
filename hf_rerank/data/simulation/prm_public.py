"""Writes simulated PRM Public lists in the raw format, with the ground truth next to them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hf_rerank.data.simulation.click_process import check_counts, show_progress
from hf_rerank.data.simulation.prm_public_lists import draw_blocks
from hf_rerank.data.simulation.prm_public_text import format_lines, make_truth_schema, make_truth_table
from hf_rerank.data.simulation.prm_public_world import PRMWorld
from hf_rerank.errors import InputError
from hf_rerank.storage import lock_output, name_failures, write_atomically


def simulate_prm(
    output_dir: str | Path,
    n_lists: int,
    *,
    seed: int = 0,
    world: PRMWorld = PRMWorld(),  # noqa: B008 - frozen
    part: int = 1,
    progress: bool = False,
) -> Path:
    """Write ``set1.train.txt.part{part}`` in the raw format of PRM Public, with its ground truth next to it.

    The ground truth, ``set1.train.txt.part{part}.truth.parquet``, has one row per line: ``list_id``
    (``part{part}:{line}``, lines counted from 1), ``attraction`` (per slot, float32; in ``mode="order"`` instead
    ``base_attraction`` and ``category``), and ``initial_position`` (per slot, from 0: where the simulator's own noisy
    initial ranker puts the item; not the display order). In a world with a history it also has the columns of the
    history, each a sequence of the history's own length. Its schema metadata contains ``examination`` (a JSON list, by
    position), ``mode``, ``world`` (all parameters, as JSON), ``seed``, and in ``mode="order"``
    ``same_category_decay``; there is no ``examination`` under a ``click_model`` other than ``position``, which has no
    such curve.

    The same arguments give the same bytes. Both files appear under their names only when they are complete, the ground
    truth first. Lists without a click are redrawn, so every list has one, as in PRM Public.

    Args:
        output_dir: Created if missing.
        n_lists: Number of lists to write, at least 1.
        seed: Non-negative seed. Parts of one seed share the items and differ in users and lists.
        world: The parameters of the world.
        part: Number of the part, from 1; the real data has the parts 1 and 2.
        progress: Show a progress bar.

    Returns:
        The path of the text file.

    Raises:
        InputError: An argument out of range, a file that already exists, a world with almost no clicks, or another
            process that is writing the text file.
        CannotWrite: The disk is full or not writable.
    """
    check_counts("simulate_prm", n_lists=(n_lists, 1), seed=(seed, 0), part=(part, 1))
    text_path = Path(output_dir) / f"set1.train.txt.part{part}"
    truth_path = text_path.with_name(text_path.name + ".truth.parquet")
    schema = make_truth_schema(world, seed)
    with lock_output(text_path):
        for path in (text_path, text_path.with_name(f"{text_path.name}.gz"), truth_path):
            if path.exists() and not (path == truth_path and _is_of_this_call(path, schema, n_lists)):
                raise InputError(f"{path} already exists; delete it, or choose another output_dir or part")
        with (
            write_atomically(text_path) as text_file,
            write_atomically(truth_path) as truth_file,  # renamed first: a text file always has its ground truth
            name_failures(text_path),
            open(text_file, "w", encoding="ascii", newline="\n") as text,
            pq.ParquetWriter(truth_file, schema) as truth,
        ):
            first_line = 1
            for lists in show_progress(draw_blocks(world, seed, part, n_lists), n_lists, progress):
                text.writelines(format_lines(lists))
                truth.write_table(make_truth_table(lists, schema, part, first_line))
                first_line += len(lists)
    return text_path


def _is_of_this_call(truth: Path, schema: pa.Schema, n_lists: int) -> bool:
    """Whether ground truth without its text was left by the same call, killed between the two renames."""
    try:
        footer = pq.read_metadata(truth)
    except (pa.ArrowInvalid, OSError):
        return False
    return footer.num_rows == n_lists and footer.schema.to_arrow_schema().metadata == schema.metadata
