"""What `benchmarks/gpu.py` measures, one table per file. Needs torch, numpy and, on a GPU, triton."""
