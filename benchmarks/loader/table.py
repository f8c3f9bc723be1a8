#!/usr/bin/env python3
"""motet and the loaders that others made, on one corpus: what they deliver, and what is left of an epoch that was cut or corrupted.

    corpus.py -> rows.npy, docs.npy     one token corpus in two shapes
    peers/    -> PEERS                  eight loaders: motet in this environment, every other in one that uv makes for it
    for each peer and action: that environment's python, peer_main.py PEER ACTION -> one JSON line
      -> FOLDER/results.json, and a table

`speed` and `documents` are run --repeats times, the peers in turns, and the medians taken. Every process has one OpenMP
thread. Mtok/s of `speed` counts from the second batch on: read it beside the whole epoch, as some loaders read most of a
small corpus before their first batch. The table has what this call ran; results.json keeps what earlier ones found. What a
peer lacks is {"lacks": why} in the JSON and a dash in the table; what failed is {"error": first line}.
FOLDER must lie outside of this repository: uv would hold the environments to the versions that it names.

    python benchmarks/loader/table.py --folder /tmp/loaders                   everything, 16 M tokens: 20 minutes on two cores;
                                                                              and motet's own measures (stream.py, collate.py)
    python benchmarks/loader/table.py --folder F grain litdata --actions speed quality --tokens 64000000 --repeats 5
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpus
from peers import PEERS
from peers.base import COMMON

ACTIONS = ("write", "speed", "quality", "resume", "kill", "elastic", "flip", "documents")
REPEATED = ("speed", "documents")
LIMIT = 300  # seconds of one action


def python(peer: str, folder: Path) -> Path:
    """The python of a peer's environment, made if it is not there; this one for motet."""
    if not PEERS[peer].needs:
        return Path(sys.executable)
    environment = folder / f"env-{peer}"
    found = environment / "bin/python"
    if not (environment / "ready").exists():
        uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
        # Not in this repository, whose versions uv would hold every environment to.
        for command in (
            [uv, "venv", "-q", "--clear", "-p", sys.executable, environment],
            [uv, "pip", "install", "-q", "-p", found, *COMMON, *PEERS[peer].needs],
        ):
            subprocess.run(command, check=True, cwd=folder)
        (environment / "ready").touch()
    return found


def act(peer: str, action: str, folder: Path, tokens: Path, seed: int) -> dict[str, Any]:
    """What one action came to; all that it said is in FOLDER/logs."""
    log = folder / "logs" / f"{peer}-{action}.txt"
    log.parent.mkdir(exist_ok=True)
    script = Path(__file__).with_name("peer_main.py")
    place = (str(tokens), str(folder / tokens.name.replace("corpus", peer)))
    command = [str(script), peer, action, *place, str(seed)]
    try:
        command = [str(python(peer, folder)), *command]
    except subprocess.CalledProcessError as error:
        return {"error": f"environment: {error}"}
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        try:
            said, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"error": f"no end after {LIMIT} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what the peer left behind
            process.wait()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": f"ended with {process.returncode}, no result"}


def median(found: list[Any]) -> Any:
    """Of numbers, through dicts; anything else is the first one's."""
    if all(isinstance(each, dict) for each in found):
        return {key: median([each[key] for each in found if key in each]) for key in found[0]}
    if all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in found):
        return statistics.median(found)
    return found[0]


def short(action: str, result: dict[str, Any]) -> str:
    """A result as a cell."""
    if "lacks" in result:
        return "–"
    if "error" in result:
        return result["error"]
    rows = f"{result.get('lost')} lost, {result.get('repeated')} repeated"
    rows += "" if result.get("epoch_ended", True) else ", epoch does not end"
    match action:
        case "write":
            return f"{result['mtok_s']:.0f} Mtok/s, {result['bytes_per_token']:.2f} B/token"
        case "speed":
            memory = f"{result['rss_mb']:.0f} MB (imports {result['rss_of_imports_mb']:.0f})"
            return (
                f"{result['mtok_s']:.1f} Mtok/s after the first batch, first batch {result['first_batch_s']:.2f} s, "
                f"epoch {result['epoch_s']:.2f} s, {memory}"
            )
        case "quality":
            return f"{result['same_eighth']:.3f} / {result['near']:.4f} / {result['entropy_bits']:.2f}; {rows}"
        case "resume":
            same = "identical" if result["identical"] else "NOT identical"
            return f"{result['first_batch_s']:.3f} s, {result['state_bytes']} bytes, {same}; {rows}"
        case "kill" | "elastic":
            left = result.get("left_in_shared_memory")
            return f"{rows}; first batch {result['first_batch_s']:.2f} s" + (
                f"; {left} files left in /dev/shm" if left else ""
            )
        case "flip":
            if result["noticed"]:
                return f"noticed: {result['how']}"
            return f"silent: {result['wrong_tokens']} tokens wrong; {rows}"
        case _:
            return "; ".join(
                f"{name}: {each['mtok_s']:.1f} Mtok/s, padding {each['padding']:.1%}, "
                + (
                    "cuts documents"
                    if "cuts_documents" in each
                    else f"{each['lost']} lost, {each['repeated']} repeated"
                )
                for name, each in result.items()
            )


def main() -> None:
    """Run, save and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "peers", nargs="*", choices=[*PEERS, []], metavar="PEER", help=f"{', '.join(PEERS)}; all by default"
    )
    parser.add_argument("--folder", type=Path, required=True, help="corpora, environments and results; kept")
    parser.add_argument(
        "--actions",
        nargs="+",
        choices=ACTIONS,
        default=list(ACTIONS),
        metavar="ACTION",
        help=f"{', '.join(ACTIONS)} (see peer_main.py); all by default, `write` comes before any other",
    )
    parser.add_argument(
        "--tokens", type=int, default=16_000_000, help="of the corpus; each size has files of its own (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help=f"of {' and '.join(REPEATED)} (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every shuffle (%(default)s)")
    said = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    folder = said.folder.resolve()
    tokens, file = folder / f"corpus-{said.tokens}", folder / "results.json"
    corpus.write(tokens, said.tokens)
    results = json.loads(file.read_text()) if file.exists() else {}
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = results.setdefault(str(said.tokens), {})
    names = said.peers or list(PEERS)
    for action in said.actions:
        repeats = said.repeats if action in REPEATED else 1
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:
                found[name].append(act(name, action, folder, tokens, said.seed))
                print(f"{name}, {action}: {short(action, found[name][-1])}", file=sys.stderr, flush=True)
        for name in names:
            good = [each for each in found[name] if "error" not in each]
            table.setdefault(name, {})[action] = median(good or found[name][:1])
            file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"{results['machine']}; {said.tokens:,} tokens; medians of {said.repeats} for {' and '.join(REPEATED)}\n")
    print("| action | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for action in said.actions:
        print(f"| {action} | " + " | ".join(short(action, table[name][action]) for name in names) + " |")
    for name in names:
        for action in said.actions:
            if "lacks" in (result := table[name][action]):
                print(f"- {name}, {action}: {result['lacks']}")
    if not said.peers and said.actions == list(ACTIONS):
        for measures in ("stream.py", "collate.py"):
            print(f"\n{measures}:", flush=True)
            subprocess.run([sys.executable, Path(__file__).parents[1] / measures], check=True)


if __name__ == "__main__":
    main()
