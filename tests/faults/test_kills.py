"""The short form of kills.py; docs/recovery.md has the result of the long one."""

import subprocess
import sys
from pathlib import Path


def test_fifty_kills_anywhere_end_with_the_same_manifest() -> None:
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "--kills", "50", "--partitions", "150"]
    told = subprocess.run([*command, "--pause", "0.2"], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and "50 processes killed" in told.stdout, told.stdout + told.stderr
