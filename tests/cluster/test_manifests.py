"""Every file of cluster/ against the schemas of KubeRay and Ray, and against our own settings."""

from __future__ import annotations

import copy
import json
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from dfmvr.cli import build_parser
from dfmvr.cli.submit import JOBS, job_arguments
from dfmvr.config import load_settings, with_changes
from ray_jobs.scaling import preflight
from ray_jobs.submit_checks import parse_job
from ray_jobs.tune_settings import load_sweep_settings
from ray_jobs.tune_space import parse_space
from ray_jobs.tune_trial import worker_cpus
from serve.check import check

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
KINDS = ("RayCluster", "RayJob", "RayService")
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
DOCKERFILES = [CLUSTER / "docker" / f"Dockerfile.{kind}" for kind in ("cpu", "cuda")]
TEXTS = [*MANIFESTS, CLUSTER / "aws.yaml", CLUSTER / "README.md", ROOT / "docs" / "cluster.md"]
IMAGE_FOLDER = "/app/"
"""Where an image holds configs/."""
Document = dict[str, Any]


def documents() -> Iterator[Document]:
    for file in MANIFESTS:
        yield from yaml.safe_load_all(file.read_text())


RAY_DOCUMENTS = [document for document in documents() if document["kind"] in KINDS]
named = pytest.mark.parametrize(
    "document", RAY_DOCUMENTS, ids=[f"{d['kind']}-{d['metadata']['name']}" for d in RAY_DOCUMENTS]
)


def cluster_of(document: Document) -> Document:
    """The RayCluster's spec in any of the three kinds."""
    spec: Document = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods_of(document: Document) -> Iterator[tuple[str, Document]]:
    """Name and template of every kind of Ray pod."""
    cluster = cluster_of(document)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def resources_of(document: Document) -> dict[str, float]:
    """What a cluster has when its wanted workers are there; the head gives no CPU."""
    totals = {"CPU": 0.0, "GPU": 0.0}
    for group in cluster_of(document)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        totals["CPU"] += group["replicas"] * float(limits["cpu"])
        totals["GPU"] += group["replicas"] * float(limits.get("nvidia.com/gpu", 0))
    return totals


def mistakes(document: Document) -> list[str]:
    if not SCHEMAS.is_dir():
        pytest.skip("KubeRay's schemas are not here (../shared/data/kuberay)")
    schema = json.loads((SCHEMAS / f"{document['kind']}.schema.json").read_text())
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


def test_there_is_one_of_each_kind_of_use():
    found = {(document["kind"], document["metadata"]["name"]) for document in RAY_DOCUMENTS}
    jobs = {("RayJob", name) for name in ("train", "tune", "preprocess")}
    assert found == jobs | {("RayService", "dfmvr"), ("RayCluster", "dfmvr")}
    others = {document["kind"] for document in documents()} - set(KINDS)
    assert others == {"Namespace", "ServiceAccount", "NetworkPolicy"}


@named
def test_manifests_fit_kuberays_schema(document: Document):
    assert mistakes(document) == []


@named
def test_a_misspelt_field_would_be_seen(document: Document):
    wrong = copy.deepcopy(document)
    cluster_of(wrong)["workerGroupSpecs"][0]["maxReplica"] = 1
    assert any("maxReplica" in mistake for mistake in mistakes(wrong))
    wrong = copy.deepcopy(document)
    cluster_of(wrong)["headGroupSpec"]["template"]["spec"]["containers"][0]["resource"] = {}
    assert any("'resource' was unexpected" in mistake for mistake in mistakes(wrong))


@named
def test_clusters_want_a_token_and_rays_pinned_version(document: Document):
    cluster = cluster_of(document)
    assert cluster["authOptions"] == {"mode": "token"}
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert cluster["rayVersion"] == pinned[1]


@named
def test_pods_are_confined_limited_and_probed(document: Document):
    for name, template in pods_of(document):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert template["metadata"]["labels"]["app"] == "dfmvr"  # what the NetworkPolicy selects
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
            assert {"livenessProbe", "readinessProbe"} <= set(container)
            assert container["image"].rpartition(":")[2] not in ("", "latest")
            for variable in container.get("env", []):
                secret = re.search(r"KEY|TOKEN|SECRET|PASSWORD", variable["name"])
                assert not secret or "secretKeyRef" in variable["valueFrom"], variable


@named
def test_a_pods_object_store_fits_its_shared_memory(document: Document):
    def gib(text: str) -> float:
        return float(text.removesuffix("Gi"))

    for name, template in pods_of(document):
        memory = gib(template["spec"]["containers"][0]["resources"]["limits"]["memory"])
        (shm,) = (volume["emptyDir"]["sizeLimit"] for volume in template["spec"]["volumes"])
        assert gib(shm) >= 0.3 * memory, name  # Ray takes 30 % of the memory for it


def test_the_network_policy_covers_our_pods_and_keeps_node_credentials_away():
    (policy,) = (document for document in documents() if document["kind"] == "NetworkPolicy")
    assert policy["spec"]["podSelector"] == {"matchLabels": {"app": "dfmvr"}}
    assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert [block["except"] for block in blocks] == [["169.254.169.254/32"]]
    assert all(rule.get("from") for rule in policy["spec"]["ingress"])
    for job in (document for document in RAY_DOCUMENTS if document["kind"] == "RayJob"):
        assert job["spec"]["submitterPodTemplate"]["metadata"]["labels"] == {"app": "dfmvr"}


def test_the_standing_cluster_scales_gpus_bought_and_spot():
    (document,) = (d for d in RAY_DOCUMENTS if d["kind"] == "RayCluster")
    cluster = cluster_of(document)
    assert cluster["enableInTreeAutoscaling"] is True
    markets = {}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] < group["maxReplicas"]
        spec = group["template"]["spec"]
        if "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]:
            markets[spec["nodeSelector"]["karpenter.sh/capacity-type"]] = group["maxReplicas"]
    assert markets == {"on-demand": 2, "spot": 8}


def test_the_endpoints_configuration_is_right(tmp_path: Path):
    (document,) = (d for d in RAY_DOCUMENTS if d["kind"] == "RayService")
    path = tmp_path / "config.yaml"
    path.write_text(document["spec"]["serveConfigV2"])
    assert check(path) == []
    content = yaml.safe_load(path.read_text())
    (application,) = content["applications"]
    arguments = application["args"]
    assert (arguments["keys"], arguments["page"]) == ("required", False)
    (group,) = cluster_of(document)["workerGroupSpecs"]
    assert (
        float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) >= arguments["cpus"]
    )
    assert group["maxReplicas"] >= arguments["max_replicas"]


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """Job and arguments of every `python -m ray_jobs.JOB ...` and `dfmvr submit ... JOB ...` in a text."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        line = line.partition("    #")[0].partition("`,")[0]
        if match := re.search(r"python -m ray_jobs\.(\w+) ([^`]+)", line):
            found.append((match[1], shlex.split(match[2])))
        elif match := re.search(rf"dfmvr (submit [^`]*\b(?:{'|'.join(JOBS)})\b[^`]*)", line):
            options = build_parser().parse_args(shlex.split(match[1]))
            found.append((options.job, job_arguments(options)))
    return found


def all_commands() -> list[tuple[str, str, list[str]]]:
    found = []
    for file in TEXTS:
        if file in MANIFESTS:
            entries = [d.get("spec", {}).get("entrypoint", "") for d in yaml.safe_load_all(file.read_text())]
        else:
            entries = [file.read_text()]
        found += [(file.name, *command) for entry in entries for command in commands_in(entry)]
    return found


@pytest.mark.parametrize(("place", "job", "arguments"), all_commands())
def test_commands_parse_and_name_what_exists(place: str, job: str, arguments: list[str]):
    parsed = parse_job(job, [argument.replace(IMAGE_FOLDER, f"{ROOT}/") for argument in arguments])
    settings_of(job, parsed)


def settings_of(job: str, parsed: Namespace) -> None:
    """Read a command's settings; nothing where it goes on with an older run."""
    if not getattr(parsed, "config", None):
        assert getattr(parsed, "resume", None) or getattr(parsed, "run", None) or job == "evaluate"
        return
    path = ROOT / parsed.config
    if job != "tune":
        load_settings(path, parsed.overrides)
        return
    sweep = load_sweep_settings(path, parsed.overrides)
    space = parse_space(sweep.space)
    bases = {
        file: with_changes(load_settings(path.parent / file), sweep.settings)
        for file in space.configs or (sweep.base,)
    }
    space.check(bases)


def test_both_the_manifests_and_the_guide_hold_commands():
    places = [place for place, _, _ in all_commands()]
    assert {"train.yaml", "tune.yaml", "preprocess.yaml", "cluster.md"} <= set(places)


@pytest.mark.parametrize("document", [d for d in RAY_DOCUMENTS if d["kind"] == "RayJob"])
def test_a_jobs_cluster_is_large_enough_for_it(document: Document):
    ((job, arguments),) = commands_in(document["spec"]["entrypoint"])
    parsed = parse_job(job, [argument.replace(IMAGE_FOLDER, f"{ROOT}/") for argument in arguments])
    resources = resources_of(document)
    if job == "train":
        preflight(load_settings(parsed.config, parsed.overrides).training, resources)
    elif job == "tune":
        sweep = load_sweep_settings(parsed.config, parsed.overrides)
        base = with_changes(load_settings(Path(parsed.config).parent / sweep.base), sweep.settings)
        worker_cpus(base.training, sweep.concurrent, resources)
    assert resources["CPU"] >= 1


def test_ray_up_accepts_the_aws_cluster():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(config)] == []
    validate_config(prepare_config(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(config | {"max_worker": 1})
    types = config["available_node_types"]
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu_on_demand"]["min_workers"] == 1
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_without_root_or_secrets(file: Path):
    text = file.read_text()
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "1000:1000"
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert all(re.fullmatch(r"python:3\.11-slim-\w+", base) for base in bases), bases
    installs = [line for line in re.sub(r"\\\n", " ", text).splitlines() if "pip install" in line]
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)
    assert not re.search(r"(?i)token|secret|password|aws_", text)
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            allowed = (file.with_name(f"{file.name}.dockerignore")).read_text().splitlines()
            assert f"!{source}" in allowed
