"""A token dataset: `shard`, `manifest` and `index`, where they are stored, and what tells of them."""
