#!/usr/bin/env python3
"""The same text through DataTrove and plain Ray Data, each in an environment of its own that uv makes.

    command("datatrove", ...) -> that environment's python, this file, "datatrove", text, vocabulary, out, workers

Run as a script, this file knows nothing of motet: it is what a user of that library would write.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PEERS = {
    "datatrove": ["datatrove[io,processing]==0.10.1", "tokenizers==0.23.3", "orjson"],
    "raydata": ["ray[data]==2.60.0", "pyarrow==25.0.0", "tokenizers==0.23.3"],
}


def command(peer: str, folder: Path, file: Path, vocabulary: Path, workers: int) -> list[str]:
    """The command that tokenizes `file`, its environment made if it is not there."""
    environment, out = folder / f"env-{peer}", folder / f"out/{peer}-{file.stem}"
    ready = environment / "ready"
    if not ready.exists():
        uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "-q", "--clear", "-p", sys.executable, environment], check=True)
        subprocess.run([uv, "pip", "install", "-q", "-p", environment / "bin/python", *PEERS[peer]], check=True)
        ready.touch()
    shutil.rmtree(out, ignore_errors=True)
    parts = _parts(file, workers) if peer == "datatrove" else file
    return [str(environment / "bin/python"), __file__, *map(str, (peer, parts, vocabulary, out, workers))]


def _parts(file: Path, workers: int) -> Path:
    """A folder with the file's lines in as many files as there are workers: DataTrove does not split a file."""
    folder = file.with_suffix(f".{workers}")
    if not folder.exists():
        folder.mkdir()
        files = [open(folder / f"{i}.jsonl", "wb") for i in range(workers)]  # noqa: SIM115
        with open(file, "rb") as lines:
            for i, line in enumerate(lines):
                files[i % workers].write(line)
        for part in files:
            part.close()
    return folder


def datatrove(parts: str, vocabulary: str, out: str, workers: int) -> None:
    """JsonlReader -> DocumentTokenizer (.ds files), a task per worker."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = DocumentTokenizer(f"{out}/tokens", tokenizer_name_or_path=vocabulary, shuffle_documents=False)
    LocalPipelineExecutor(
        [JsonlReader(parts), tokenizer], tasks=workers, workers=workers, logging_dir=f"{out}/logs"
    ).run()


def raydata(file: str, vocabulary: str, out: str, workers: int) -> None:
    """read_json -> map_batches with the tokenizer -> write_parquet."""
    import numpy as np
    import ray
    from tokenizers import Tokenizer

    class Encode:
        def __init__(self) -> None:
            self.tokenizer = Tokenizer.from_file(vocabulary)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            found = self.tokenizer.encode_batch_fast(list(batch["text"]), add_special_tokens=False)
            return {"tokens": [np.array(each.ids, np.uint16) for each in found]}

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    pool = ray.data.ActorPoolStrategy(size=workers)
    # Half a CPU each, or none would be left to read and to write with.
    ray.data.read_json(file).map_batches(Encode, compute=pool, num_cpus=0.5, batch_size=128).write_parquet(out)


if __name__ == "__main__":
    name, *rest, count = sys.argv[1:]
    {"datatrove": datatrove, "raydata": raydata}[name](*rest, int(count))
