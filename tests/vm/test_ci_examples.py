"""The CI examples, run: their steps as shell on fresh clones, with stand-ins only for what the services themselves do.

Those are the checkout, caches and artifacts. Each job has a clone of its own, as it would on a runner.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.places import cache_root
from harness.strict_yaml import read
from tests.vm.conftest import ALL

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = CHECKOUT / "examples" / "ci"
POLICY = "policy: the smoke test has passed\nrequire:\n  - tags: [smoke]\n"
#: The part of the catalogue that is in the clones: enough for two shards, and minutes instead of a quarter of an hour.
FEATURES = None if ALL else ("balloon", "vtd")
#: Takes the place of the catalogue where a night is to fail: in each of two shards, one thing that does.
PLANTED = """\
scenario: planted
feature: balloon
tags: [smoke]
boot: {machine: pc, memory_mib: 512%s}
drive:
  - guest.run: {as: said, argv: [echo, hello]}
assert:
  - said.stdout == 'good bye'
"""
WRONG = {"fails": "", "never-comes-up": ", kernel_args: [rdinit=/bin/nonexistent]"}


@dataclass
class Service:
    """What a CI service keeps between jobs.

    :ivar images: where the cache of images really is.
    :ivar unlucky: whether all scenarios are planted ones, which do not pass.
    """

    root: Path
    images: Path
    unlucky: bool = False

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    def clone(self, name: str) -> Path:
        target = self.root / name
        subprocess.run(["git", "clone", "--quiet", "--no-local", CHECKOUT, target], check=True)
        (target / "smoke-policy.yaml").write_text(POLICY)
        for directory in (target / "scenarios").iterdir():
            if directory.is_dir() and FEATURES is not None and directory.name not in FEATURES:
                shutil.rmtree(directory)
        if self.unlucky:
            shutil.rmtree(target / "scenarios")
            for name, changed in WRONG.items():
                (target / "scenarios" / "balloon").mkdir(parents=True, exist_ok=True)
                (target / "scenarios" / "balloon" / f"{name}.yaml").write_text(PLANTED % changed)
        return target

    def restore(self, workspace: Path, path: str) -> None:
        """A cache: that of images is used where it lies, any other is a copy."""
        if path == ".cache/harness":
            (workspace / ".cache").mkdir(exist_ok=True)
            (workspace / path).symlink_to(self.images)
        elif (self.root / "caches" / path).exists():
            shutil.copy(self.root / "caches" / path, workspace / path)

    def save(self, workspace: Path, path: str) -> None:
        if path != ".cache/harness" and (workspace / path).exists():
            (self.root / "caches").mkdir(exist_ok=True)
            shutil.copy(workspace / path, self.root / "caches" / path)

    def upload(self, workspace: Path, name: str, patterns: list[str], *, inner: bool = False) -> list[str]:
        """Keep an artifact.

        :param inner: whether of a single directory its content is kept, as GitHub does.
        :return: what was found, by its name in the workspace.
        """
        found = [path for pattern in patterns for path in workspace.glob(pattern)]
        target = self.artifacts / name
        for path in found:
            if path.is_dir():
                shutil.copytree(path, target if inner and len(patterns) == 1 else target / path.name)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / path.name)
        return [path.name for path in found]

    def download(self, workspace: Path) -> None:
        for artifact in self.artifacts.iterdir():
            shutil.copytree(artifact, workspace, dirs_exist_ok=True)

    def shell(self, workspace: Path, script: str, environment: Mapping[str, str]) -> int:
        """One step; its output goes to pytest, which shows it when the test fails."""
        print(f"$ {script}", flush=True)
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=workspace,
            env={**os.environ, "CI": "true", "NO_COLOR": "1", **environment},
            check=False,
            timeout=1800,
        )
        return done.returncode


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, cache_root())


def github_job(service: Service, workflow: dict[str, Any], name: str, matrix: Mapping[str, Any]) -> bool:
    """Run a job's steps, as far as the ones before let it."""
    values = {"github.run_id": "1", **{f"matrix.{key}": str(value) for key, value in matrix.items()}}

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ *([\w.]+) *\}\}", lambda found: values[found[1]], text)

    workspace = service.clone("-".join([name, *map(str, matrix.values())]))
    environment = {**workflow["env"], "TAG": "smoke", "POLICY": "smoke-policy.yaml"}
    good = True
    for step in workflow["jobs"][name]["steps"]:
        condition = step.get("if", "success()")
        if not {"always()": True, "success()": good, "failure()": not good}[condition]:
            continue
        told = {key: filled(value) if isinstance(value, str) else value for key, value in step.get("with", {}).items()}
        match step.get("uses", "").partition("@")[0]:
            case "":
                good = service.shell(workspace, filled(step["run"]), environment) == 0 and good
            case "actions/checkout":
                pass
            case "actions/cache" | "actions/cache/restore":
                service.restore(workspace, told["path"])
            case "actions/upload-artifact":
                assert service.upload(workspace, told["name"], told["path"].split(), inner=True), f"nothing for {told}"
            case "actions/download-artifact":
                service.download(workspace)
            case other:
                pytest.fail(f"no stand-in for {other}")
    for step in workflow["jobs"][name]["steps"]:
        if step.get("uses", "").startswith("actions/cache@"):
            service.save(workspace, step["with"]["path"])
    return good


def test_github(service: Service) -> None:
    workflow = read(EXAMPLES / "github.yml").value
    for shard in workflow["jobs"]["scenarios"]["strategy"]["matrix"]["shard"]:
        assert github_job(service, workflow, "scenarios", {"shard": shard})
    assert github_job(service, workflow, "gate", {})
    check_what_is_left(service, "gate")
    assert (service.root / "caches" / "history.sqlite").is_file()


def gitlab_job(service: Service, pipeline: dict[str, Any], name: str, index: int = 1) -> bool:
    """Run a job: what comes before, the script, and what comes after whatever became of it."""
    job = pipeline[name]
    workspace = service.clone(f"{name}-{index}")
    for cache in job["cache"]:
        for path in cache["paths"]:
            service.restore(workspace, path)
    if job.get("needs"):
        service.download(workspace)
    environment = {**pipeline["variables"], "TAG": "smoke", "POLICY": "smoke-policy.yaml"}
    environment |= {"CI_NODE_INDEX": str(index), "CI_NODE_TOTAL": str(job.get("parallel", 1))}
    lines = [*pipeline["default"]["before_script"], *job["script"]]
    good = service.shell(workspace, "\n".join(lines), environment) == 0
    if job.get("after_script"):
        service.shell(workspace, "\n".join(job["after_script"]), environment)
    reports = list(job["artifacts"]["reports"].values())
    uploaded = service.upload(workspace, f"{name}-{index}", [*job["artifacts"]["paths"], *reports])
    assert len(uploaded) >= len(reports) + 1
    for cache in job["cache"]:
        if cache.get("policy") != "pull":
            for path in cache["paths"]:
                service.save(workspace, path)
    return good


def test_gitlab(service: Service) -> None:
    pipeline = read(EXAMPLES / "gitlab.yml").value
    for index in range(1, pipeline["scenarios"]["parallel"] + 1):
        assert gitlab_job(service, pipeline, "scenarios", index)
    assert gitlab_job(service, pipeline, "gate")
    check_what_is_left(service, "gate-1")


def check_what_is_left(service: Service, gate: str, told: str = "passed") -> None:
    kept = {path.name for path in service.artifacts.rglob("*")}
    assert {"summary-1.json", "summary-2.json", "junit-1.xml", "junit-2.xml"} <= kept
    (page,) = service.artifacts.rglob("index.html")
    assert told in page.read_text()
    assert (service.root / gate / "history.sqlite").is_file()


def test_github_when_scenarios_do_not_pass(service: Service) -> None:
    """Steps fail, and each artifact that the workflow names is there, with what a person needs to go on."""
    service.unlucky = True
    workflow = read(EXAMPLES / "github.yml").value
    for shard in workflow["jobs"]["scenarios"]["strategy"]["matrix"]["shard"]:
        assert not github_job(service, workflow, "scenarios", {"shard": shard})
    assert not github_job(service, workflow, "gate", {})
    check_what_failed(service, "gate", [service.artifacts / f"results-{shard}" for shard in (1, 2)])


def test_gitlab_when_scenarios_do_not_pass(service: Service) -> None:
    service.unlucky = True
    pipeline = read(EXAMPLES / "gitlab.yml").value
    for index in (1, 2):
        assert not gitlab_job(service, pipeline, "scenarios", index)
    assert not gitlab_job(service, pipeline, "gate")
    check_what_failed(service, "gate-1", [service.artifacts / f"scenarios-{index}" / "results" for index in (1, 2)])


def check_what_failed(service: Service, gate: str, results: list[Path]) -> None:
    check_what_is_left(service, gate, "1 failed, 1 errors")
    verdicts = {}
    for directory in results:
        (scenario,) = directory.iterdir()
        assert {"console-guest.log", "qemu.argv", "evidence.json", "repro.sh"} <= {
            item.name for item in scenario.iterdir()
        }
        verdicts[scenario.name] = json.loads((scenario / "result.json").read_text())["verdict"]
    assert verdicts == {"balloon-fails": "fail", "balloon-never-comes-up": "error"}
    cases = [
        case for file in service.artifacts.rglob("junit-*.xml") for case in ElementTree.parse(file).iter("testcase")
    ]
    kinds = {str(case.get("name")): {child.tag for child in case} - {"properties"} for case in cases}
    assert kinds == {"fails": {"failure"}, "never-comes-up": {"error"}}
