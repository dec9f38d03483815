"""The commands of ``hf-rerank``, one per file: ``add`` declares the options, ``run`` does the work.

Slow imports are in ``run``, so that ``--help`` answers at once.
"""

__all__ = [
    "evaluate",
    "export",
    "initial_rank",
    "prepare",
    "push",
    "rank",
    "schema",
    "simulate",
    "train",
    "vectors",
]
