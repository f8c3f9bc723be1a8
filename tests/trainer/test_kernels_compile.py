"""Every kernel compiles for an H100 or H200, with or without one: what only the interpreter accepts is caught here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED = 227 << 10
"""Bytes of shared memory that a program can have at compute capability 9.0."""


@pytest.fixture(scope="module")
def lines():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    modules = ["linear", "norm", "rope", "swiglu", "cross_entropy"]
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script), *modules], env=environment, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_in_every_type(lines):
    kernels = {"rows_kernel", "weight_kernel", "norm_kernel", "norm_backward_kernel", "sum_strips", "rope_kernel"}
    kernels |= {"rope_backward_kernel", "swiglu_kernel", "swiglu_backward_kernel", "softmax_kernel"}
    assert {(line["kernel"], line["type"]) for line in lines} == {
        (kernel, word) for kernel in kernels for word in ("bf16", "fp16", "fp32")
    }


def test_all_fit_into_shared_memory(lines):
    assert all(line["shared"] <= SHARED for line in lines), max(line["shared"] for line in lines)


def test_every_tile_of_the_matrix_products_uses_the_tensor_cores_in_bf16(lines):
    products = [line for line in lines if line["kernel"] in ("rows_kernel", "weight_kernel") and line["type"] == "bf16"]
    assert len(products) == 15 and all(line["wgmma"] for line in products)
