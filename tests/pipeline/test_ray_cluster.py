"""The Ray engine on a cluster of two nodes on this machine: the bytes of the local engine, also when a node is killed."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from motet.core.errors import UserError
from motet.pipeline.job.engines import EngineOptions
from motet.pipeline.job.job import tokenize_corpus

pytestmark = pytest.mark.ray
SLOW = """
import time
from motet.tokenizers.text import bpe

class Slow(bpe.BPE):
    def encode(self, samples):
        time.sleep(0.3)
        return super().encode(samples)

class OnGPU(bpe.BPE):
    class Settings(bpe.BPE.Settings):
        device: str = "cpu"
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes of a processor each; `slow:Slow` and `slow:OnGPU` can be imported there."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"), prepend=":")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": None})  # a free one
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def texts(configure, tools: Path, corpus: Path, use: str, **settings):
    """A configuration of 30 short texts, one a partition."""
    rows = [json.dumps({"text": f"This is text number {i}, of thirty."}) + "\n" for i in range(30)]
    (corpus / "thirty.jsonl").write_text("".join(rows), encoding="utf-8")
    return configure(
        corpus=[{"name": "thirty", "format": "text", "path": "thirty.jsonl"}],
        tokenizers={"text": {"use": use, "path": str(tools / "bpe"), **settings}},
        partition_bytes=20,
    )


def test_two_nodes_write_the_bytes_of_one_process(cluster: Cluster, corpus, configure, tmp_path: Path) -> None:
    local = tokenize_corpus(configure(), corpus, tmp_path / "local").manifest.to_text()
    result = tokenize_corpus(configure(), corpus, tmp_path / "ray", engine="ray", workers=2)
    assert result.manifest.to_text() == local and result.done == 8
    assert len({actor["node_id"] for actor in _actors(cluster)}) == 2, "both nodes worked"


def test_a_killed_node_loses_nothing(cluster: Cluster, corpus, configure, tools: Path, tmp_path: Path) -> None:
    config = texts(configure, tools, corpus, "slow:Slow")
    node, commits = cluster.add_node(num_cpus=1), tmp_path / "ray/commits"

    def kill() -> None:
        while len(list(commits.glob("*.json"))) < 3:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    result = tokenize_corpus(config, corpus, tmp_path / "ray", engine="ray", workers=3)
    killer.join()
    assert len(cluster.list_all_nodes()) == 2
    assert tokenize_corpus(config, corpus, tmp_path / "local").manifest.to_text() == result.manifest.to_text()


def test_what_needs_a_gpu_goes_where_one_is(cluster: Cluster, corpus, configure, tools: Path, tmp_path: Path) -> None:
    """Text beside it needs none: two kinds of actors, the one with half a GPU each."""
    config = texts(configure, tools, corpus, "slow:OnGPU", device="cuda")
    options = EngineOptions(gpus_per_worker=0.5)
    with pytest.raises(UserError, match=r"tokenizers.text: device: the cluster has no GPU to give 0.5 of"):
        tokenize_corpus(config, corpus, tmp_path / "ray", engine="ray", options=options)
    cluster.add_node(num_cpus=2, num_gpus=1)
    cluster.wait_for_nodes()
    result = tokenize_corpus(config, corpus, tmp_path / "ray", engine="ray", workers=1, options=options)
    assert result.manifest.documents == 30
    shares = [actor["required_resources"].get("GPU") for actor in _actors(cluster)]
    assert [share for share in shares if share] == [0.5, 0.5]


def _actors(cluster: Cluster) -> list[dict]:
    """The engine's actors, as this cluster remembers them: there may be another one on this machine."""
    from ray.util.state import list_actors

    return [vars(a) for a in list_actors(cluster.address, detail=True, filters=[("class_name", "=", "_Actor")])]
