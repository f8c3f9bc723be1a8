"""Corpora to document shards to statistics.

A corpus is cut into partitions (`plan`), each partition is tokenized by a pure function (`tokenize`) that an engine
(`engines`) maps over the plan, every result is committed atomically (`commit`), and the manifest is written last.
"""
