"""Shards to batches: `records` reads, `order` says which documents stand in which row, `collate` makes grouped batches."""
