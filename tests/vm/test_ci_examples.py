"""The CI examples, run: their steps as shell on fresh clones, with stand-ins only for what the services themselves do.

Those are the checkout, caches and artifacts. Each job has a clone of its own, as it would on a runner.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass
class Service:
    """What a CI service keeps between jobs.

    :ivar images: where the cache of images really is.
    """

    root: Path
    images: Path

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

    def upload(self, workspace: Path, patterns: list[str]) -> list[str]:
        found = [path for pattern in patterns for path in workspace.glob(pattern)]
        for path in found:
            target = self.artifacts / path.name
            target.parent.mkdir(exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, target)
        return [path.name for path in found]

    def download(self, workspace: Path) -> None:
        shutil.copytree(self.artifacts, workspace, dirs_exist_ok=True)

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
                assert service.upload(workspace, told["path"].split()), f"nothing to upload: {told}"
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
    uploaded = service.upload(workspace, [*job["artifacts"]["paths"], *reports])
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
        shutil.rmtree(service.artifacts / "results")  # GitLab keeps each job's apart
    assert gitlab_job(service, pipeline, "gate")
    check_what_is_left(service, "gate-1")


def check_what_is_left(service: Service, gate: str) -> None:
    assert {"summary-1.json", "summary-2.json", "junit-1.xml", "junit-2.xml", "report"} <= {
        path.name for path in service.artifacts.iterdir()
    }
    assert "passed" in (service.artifacts / "report" / "index.html").read_text()
    assert (service.root / gate / "history.sqlite").is_file()
