"""The Mixture-of-Transformers: `mot` is the model, `grouped` its row-wise parts, `attention` the one thing that mixes.

`mot`, `kernels` and `objective` need torch and numpy only, so that `benchmarks/gpu.py` runs on a bare GPU machine.
"""
