"""Corpora to document shards to statistics.

`corpus` is what comes in, cut into partitions; `job` tokenizes each by a pure function that an engine maps over them, and
commits every result atomically; `dataset` is what comes out.
"""
