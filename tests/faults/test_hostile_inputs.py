"""The short form of hostile.py; docs/recovery.md has the result of the long one."""

import subprocess
import sys
from pathlib import Path


def test_broken_files_of_every_format_are_documents_or_rejects() -> None:
    command = [sys.executable, str(Path(__file__).with_name("hostile.py")), "--count", "24", "--containers", "1"]
    told = subprocess.run([*command, "--seed", "3"], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and "2 broken containers" in told.stdout, told.stdout + told.stderr
