"""Document shards to batches to a Mixture-of-Transformers to checkpoints to media.

`data` turns shards into grouped batches, `model` is the MoT with its `kernels`, `objective` what a step minimises, `run` the
training loop and its launchers, `generate` what comes after a prompt, `use` what is done with all of that.
"""
