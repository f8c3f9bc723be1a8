"""Another Ray on the machine, which knows nothing of our run, does it no harm."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from motet.trainer.run.launch import launch

RAY = str(Path(sys.executable).with_name("ray"))
FOUND = Path("/tmp/ray/ray_current_cluster")
"""Where Ray looks for a Ray, asked for none."""


@pytest.fixture
def other_ray():
    """start(): a head as `ray start` makes it, which from then on is the one that Ray finds."""
    folder = Path(tempfile.mkdtemp(prefix="other"))
    before = FOUND.read_text() if FOUND.exists() else None

    def start() -> None:
        options = ["--head", "--num-cpus=1", "--port=0", "--dashboard-port=0", "--include-dashboard=true"]
        environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        command = [RAY, "start", *options, f"--temp-dir={folder}"]
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
        FOUND.write_text((folder / FOUND.name).read_text())

    yield start
    subprocess.run(["pkill", "-9", "-f", str(folder)], check=False)
    FOUND.unlink(missing_ok=True)
    if before is not None:
        FOUND.write_text(before)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
def test_a_run_asks_its_own_ray_whether_it_lives(other_ray, train_config, tmp_path, capfd):
    """Ray Train's cleaner asked the other one, took the run for dead, and left: or took its workers away, if it had them by then."""
    other_ray()
    summary = launch(train_config(steps=60, launcher="ray"), tmp_path / "run")
    assert summary["finished"] and summary["resumed_from"] == 0
    told = "".join(capfd.readouterr())
    assert "TrainController" in told  # what its processes say arrives here
    assert "Failed to register placement group" not in told and "Detected that the Ray Train controller" not in told
    assert "multiple active Ray instances" not in told
