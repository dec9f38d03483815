"""The commands of ``hf-rerank``, one a file: ``add`` says the options, ``run`` does the work.

Whatever is slow to import is imported by ``run``, so that ``--help`` answers at once.
"""
