"""The commands of ``hf-rerank``, one per file: ``add`` declares the options, ``run`` does the work.

Whatever is slow to import is imported by ``run``, so that ``--help`` answers at once.
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
