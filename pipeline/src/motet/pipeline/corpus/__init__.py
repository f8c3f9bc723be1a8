"""Corpora as people have them: an `entry` of a configuration, the `files` that it names, and how `sources` read them."""
