"""Document shards to batches to a Mixture-of-Transformers to checkpoints to media.

`stream` turns shards into grouped batches, `model` is the MoT, `train` is the loop; `launch` runs the loop here or on Ray.
"""
