"""The short form of flips.py; docs/recovery.md has the result of the long one."""

import subprocess
import sys
from pathlib import Path


def test_every_damage_is_refused_by_name() -> None:
    command = [sys.executable, str(Path(__file__).with_name("flips.py")), "--count", "300", "--seed", "7"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0 and "300 damages" in told.stdout, told.stdout + told.stderr
