"""How loops over documents are compiled: once per machine, kept beside the package, without the interpreter's lock."""

from __future__ import annotations

from typing import Any

from numba import njit

compiled: Any = njit(cache=True, nogil=True, error_model="numpy")
