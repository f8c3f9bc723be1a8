"""Several processes on this machine that are the ranks of one run, connected as by torchrun."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from motet.core.configuration import dump_config
from motet.trainer.config import TrainConfig

TRAIN = """
summary = train(config, out, rank, world, say=lambda text: print("said:", text))
print(summary["step"])
"""
RANK = """
import sys
from pathlib import Path
from motet.trainer.config import load
from motet.trainer.run.launch.torchrun import connected
from motet.trainer.run.train import train
file, out, work = sys.argv[1:]
try:
    with connected() as (rank, world):
        exec(work, {**globals(), "config": load(file), "out": Path(out), "rank": rank, "world": world})
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""


def commands(configs: Sequence[TrainConfig], folder: Path, out: Path, work: str = TRAIN) -> list[list[str]]:
    """What starts each rank, each with its own configuration: as many as there are."""
    made = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for rank, config in enumerate(configs):
        file = folder / f"{rank}-of-{len(configs)}.yaml"
        file.write_text(dump_config(config))
        told = {"RANK": rank, "WORLD_SIZE": len(configs), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = [f"{name}={value}" for name, value in told.items()]
        made.append(
            ["env", "GLOO_SOCKET_IFNAME=lo", *variables, sys.executable, "-c", RANK, *map(str, (file, out, work))]
        )
    return made


def ranks(configs: Sequence[TrainConfig], folder: Path, out: Path, work: str = TRAIN) -> list[tuple[int, str]]:
    """(exit code, output) of every rank of one run in the folder `out`; `work` has `config`, `out`, `rank` and `world`."""
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands(configs, folder, out, work)
    ]
    return [(process.wait(timeout=300), process.stdout.read()) for process in started]
