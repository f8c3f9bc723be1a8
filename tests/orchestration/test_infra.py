"""Container files and KubeRay manifests: fields, commands and configurations are ones that exist."""

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from motet.core.configuration import load_config
from motet.orchestration.cli import app
from motet.pipeline.job.config import TokenizeConfig
from motet.trainer.config import load

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
SCHEMAS = [json.loads(file.read_text("utf-8")) for file in (Path(__file__).parent / "schemas").glob("*.json")]
REGISTRY: Any = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in SCHEMAS)


def documents(name: str) -> dict[str, Any]:
    found = yaml.safe_load_all((INFRA / "kuberay" / name).read_text("utf-8"))
    return {document["kind"]: document for document in found}


def problems(document: dict[str, Any]) -> list[str]:
    schema = next(s for s in SCHEMAS if s["properties"]["kind"]["const"] == document["kind"])
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema, registry=REGISTRY).iter_errors(document)]


def resource(name: str) -> dict[str, Any]:
    return documents(name)["RayJob" if name == "rayjob.yaml" else "RayCluster"]


def cluster(name: str) -> dict[str, Any]:
    spec = resource(name)["spec"]
    return spec["rayClusterSpec"] if name == "rayjob.yaml" else spec


MANIFESTS = ["rayjob.yaml", "raycluster.yaml"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_is_valid(name: str) -> None:
    assert problems(resource(name)) == []


def paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every mapping with fixed keys stands (not those whose keys are the user's own)."""
    if isinstance(node, dict) and (not at or at[-1] not in ("rayStartParams", "requests", "limits", "labels")):
        yield at
        for key, value in node.items():
            yield from paths(value, (*at, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from paths(value, (*at, i))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_misspelt_field_is_found_wherever_it_stands(name: str) -> None:
    document = resource(name)
    for path in paths(document):
        wrong = copy.deepcopy(document)
        node = wrong
        for part in path:
            node = node[part]
        node["ttlSecondAfterFinished"] = 1
        assert problems(wrong), path


@pytest.mark.parametrize(
    ("field", "value"),
    [("submissionMode", "k8sJobMode"), ("backoffLimit", "3"), ("activeDeadlineSeconds", 0), ("entrypoint", ["motet"])],
)
def test_a_wrong_value_is_found(field: str, value: Any) -> None:
    document = resource("rayjob.yaml")
    document["spec"][field] = value
    assert problems(document)


@pytest.mark.parametrize("missing", ["headGroupSpec", "workerGroupSpecs.0.groupName", "headGroupSpec.rayStartParams"])
def test_a_missing_field_is_found(missing: str) -> None:
    document = resource("rayjob.yaml")
    node: Any = document["spec"]["rayClusterSpec"]
    *parents, last = missing.split(".")
    for part in parents:
        node = node[int(part) if part.isdigit() else part]
    del node[last]
    assert problems(document)


@pytest.mark.parametrize("name", MANIFESTS)
def test_volumes_claims_and_images_are_ones_that_exist(name: str) -> None:
    there = documents(name)
    named = {(kind, document["metadata"]["name"]) for kind, document in there.items()}
    groups = [cluster(name)["headGroupSpec"], *cluster(name)["workerGroupSpecs"]]
    for spec in (group["template"]["spec"] for group in groups):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in named
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in named
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            kind = container["image"].removeprefix("motet-").partition(":")[0]
            assert (INFRA / f"Containerfile.{kind}").is_file()


@pytest.mark.parametrize("name", MANIFESTS)
def test_versions_are_those_of_the_workspace(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert f"ray=={cluster(name)['rayVersion']}" in project["tool"]["uv"]["constraint-dependencies"]
    images = re.findall(r"image: (\S+)", (INFRA / "kuberay" / name).read_text("utf-8"))
    assert {image.partition(":")[2] for image in images} == {project["project"]["version"]}


def commands() -> list[list[str]]:
    job = documents("rayjob.yaml")
    lines = job["ConfigMap"]["data"]["line.sh"].splitlines()
    return [shlex.split(line) for line in lines if line.startswith("motet ")]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[1])
def test_the_jobs_commands_parse(command: list[str]) -> None:
    verb = typer.main.get_command(app).commands[command[1]]  # type: ignore[attr-defined]
    verb.make_context(command[1], command[2:])


def test_the_job_starts_the_script_of_its_configuration() -> None:
    job = documents("rayjob.yaml")
    program, script = shlex.split(job["RayJob"]["spec"]["entrypoint"])
    assert (program, Path(script).parent) == ("bash", Path("/etc/motet"))
    data = job["ConfigMap"]["data"]
    used = {Path(word).name for command in commands() for word in command if word.startswith("/etc/motet/")}
    assert {Path(script).name, *used} == set(data)


def test_the_jobs_configurations_are_valid(tmp_path: Path) -> None:
    data = documents("rayjob.yaml")["ConfigMap"]["data"]
    for name in ("tokenize.yaml", "train.yaml"):
        (tmp_path / name).write_text(data[name], encoding="utf-8")
    load_config(tmp_path / "tokenize.yaml", TokenizeConfig)
    train = next(command for command in commands() if command[1] == "train")
    overrides = [value for flag, value in pairwise(train) if flag == "--set"]
    config = load(tmp_path / "train.yaml", overrides)
    tokens = next(command for command in commands() if command[1] == "tokenize")
    assert config.data.paths == [tokens[tokens.index("--out") + 1]]
    workers = next(g for g in cluster("rayjob.yaml")["workerGroupSpecs"] if g["groupName"] == "train")
    assert config.launcher == "ray" and config.workers == workers["replicas"]
    assert str(config.threads) == workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]


ROOMS = {
    "preprocess": {"tokenizers", "pipeline"},
    "beam": {"tokenizers", "pipeline"},
    "train": {"tokenizers", "pipeline", "trainer"},
    "service": {"tokenizers", "pipeline", "trainer", "orchestration"},
}


@pytest.mark.parametrize("kind", ROOMS)
def test_a_container_has_its_rooms_from_the_repository_and_no_root(kind: str) -> None:
    text = (INFRA / f"Containerfile.{kind}").read_text("utf-8")
    lines = re.sub(r"\\\n", " ", text).splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    sources = [Path(source) for copy_ in copies for source in copy_]
    assert all((ROOT / source).exists() for source in sources)
    assert {source.parts[0] for source in sources if source.name == "src"} == ROOMS[kind]
    assert {source.parts[0] for source in sources if len(source.parts) > 1} == set(ROOMS["service"])

    sync = next(line for line in lines if "uv sync" in line).split()
    asked = [after for word, after in pairwise(sync) if word == "--package"]
    assert asked and {name.removeprefix("motet-") for name in asked} <= ROOMS[kind]
    projects = [
        tomllib.loads((ROOT / name.removeprefix("motet-") / "pyproject.toml").read_text("utf-8")) for name in asked
    ]
    extras = [after for word, after in pairwise(sync) if word == "--extra"]
    assert extras == ["beam" if kind == "beam" else "ray", "remote"], "its engine or launcher, and s3://"
    assert set(extras) <= {extra for each in projects for extra in each["project"]["optional-dependencies"]}
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in ("0", "root")
    assert ("RAY_ENABLE_UV_RUN_RUNTIME_ENV=0" in text) == ("ray" in extras)
    assert "://" not in text, "which index is asked is the builder's own setting"
