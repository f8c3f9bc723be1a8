"""What holds for every test and all processes that tests start: one thread of arithmetic, one server to fork from.

The last bits of a floating-point result depend on the number of threads, and tokenizers run with the number that their
settings name (one): a comparison with the bare library, bit by bit, needs the same number on both sides.
"""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def server() -> None:
    """Workers' processes are forked from a server; it imports once, before any test starts one, what all of them need."""
    from motet.pipeline.work import prepare

    prepare([f"motet.tokenizers.{name}" for name in ("bpe", "vqgan", "melrvq")])
