"""One thread of arithmetic for every test and all processes that tests start.

The last bits of a floating-point result depend on the number of threads, and tokenizers run with the number that their
settings name (one): a comparison with the bare library, bit by bit, needs the same number on both sides.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
