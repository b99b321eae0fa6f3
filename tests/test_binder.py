"""Binder builds what the package asks for: the folder is understood, and its pins are the lock's."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import venv

import pytest
from packaging.requirements import Requirement
from rerun import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BINDER = ROOT / "binder"
NEEDED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
LINES = (BINDER / "requirements.txt").read_text().split("\n")[:-1]
PINS = {pin.name: pin for pin in map(Requirement, (line for line in LINES if not line.startswith(("#", "-"))))}


def test_every_dependency_is_pinned_and_torch_is_the_build_for_processors():
    assert {Requirement(line).name for line in NEEDED} <= set(PINS)
    assert str(PINS["torch"].specifier).endswith("+cpu")
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in LINES


@pytest.mark.skipif(sys.platform == "win32", reason="repo2docker does not run on Windows")
def test_repo2docker_understands_the_folder():
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(ROOT)]
    plan = subprocess.run(command, capture_output=True, text=True, timeout=60)
    text = plan.stdout + plan.stderr
    assert plan.returncode == 0, text
    assert "Building conda environment for python=3.11" in text
    assert 'pip install --no-cache-dir -r "binder/requirements.txt"' in text
    assert "RUN ./binder/postBuild" in text and os.access(BINDER / "postBuild", os.X_OK)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_same_steps_in_a_fresh_environment(request, tmp_path):
    """Minutes, so only on request: what Binder does with the folder, in a virtual environment on a copy."""
    if not request.config.option.fresh_environment:
        pytest.skip("installs a whole environment: ask with --fresh-environment")
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("\n".join(reachable(LINES)))
    run(scripts / "python", "-m", "pip", "install", "--no-cache-dir", "-r", requirements)
    for name in ("pyproject.toml", "requirements.lock", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("lessons_lib", "binder", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    run(tmp_path / "binder" / "postBuild", cwd=tmp_path, env=os.environ | {"PATH": path})
    where = run(scripts / "python", "-c", "import lessons_lib, torch; print(lessons_lib.__file__)", cwd=scripts)
    assert pathlib.Path(where.strip()).is_relative_to(tmp_path)
    assert run(scripts / "jupyter", "lab", "--version").strip() == str(PINS["jupyterlab"].specifier)[2:]


def reachable(lines):
    """The requirements without an index that this machine cannot reach: pip would wait for it once a package."""
    for line in lines:
        try:
            if line.startswith("--extra-index-url"):
                socket.getaddrinfo(line.split("//")[1].split("/")[0], 443)
        except OSError:
            continue
        yield line
