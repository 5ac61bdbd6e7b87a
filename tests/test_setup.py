"""Setting up: clear refusals, and pins that agree with one another."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def set_up(python: Path | str, venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "setup.sh", venv],
        env={**os.environ, "PYTHON": str(python), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    """A `python` that says it is 3.9."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 3.9\n")
    script.chmod(0o755)
    return script


def test_a_missing_python_is_named(tmp_path: Path):
    result = set_up("no-such-python", tmp_path / "venv")
    assert result.returncode == 1
    assert "expected Python 3.11 as 'no-such-python', found no such program" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_another_python_is_refused(fake_python: Path, tmp_path: Path):
    result = set_up(fake_python, tmp_path / "venv")
    assert result.returncode == 1
    assert "expected Python 3.11, got 3.9" in result.stderr


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({}, "these system libraries are missing and there is no apt-get: libgl1 libegl1"),
        (
            {"apt-get": "exit 1", "id": "echo 1000", "sudo": "exit 1"},
            "    sudo apt-get update && sudo apt-get install -y --no-install-recommends libgl1 libegl1",
        ),
        ({"apt-get": "exit 1", "id": "echo 0"}, "apt-get failed; run this line by hand, then try again:"),
    ],
    ids=["no apt-get", "not root", "apt-get fails"],
)
def test_missing_libraries_are_told_with_the_line_to_run(
    tmp_path: Path, programs: dict[str, str], words: str
):
    """On a machine whose programs are those here, and whose Python misses two libraries."""
    answers = 'case "$1" in -) echo libgl1 libegl1;; *) echo 3.11;; esac'
    for name, body in {**programs, "python": answers}.items():
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = set_up(tmp_path / "python", tmp_path / "venv", PATH=str(tmp_path))
    assert result.returncode == 1
    assert words in result.stderr
    assert not (tmp_path / "venv").exists()


def test_every_requirement_of_the_setup_is_pinned_within_its_bounds():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    extras = PYPROJECT["project"]["optional-dependencies"]
    lines = PYPROJECT["project"]["dependencies"] + [
        line
        for name in ("ray", "tune", "eval", "photos-dlib", "dev")
        for line in extras[name]
        if line != "dfmvr[ray]"
    ]
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate():
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in constraints.txt"
            assert requirement.specifier.contains(version), f"{requirement} does not admit {version}"


def test_the_builder_of_the_face_model_gets_the_pinned_anny():
    (pin,) = re.findall(r"^ANNY := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert PYPROJECT["project"]["optional-dependencies"]["face-model"] == [pin]


def test_ci_ends_with_the_tests():
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert script.rstrip().splitlines()[-1].endswith("make --no-print-directory test")
