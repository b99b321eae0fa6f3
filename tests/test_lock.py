"""The lock holds what pyproject.toml asks for: within its ranges, whole, for every system and Python."""

import itertools
import re
import sys
from importlib.metadata import distribution

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rerun import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
SYSTEMS = {"linux": ("posix", "Linux"), "darwin": ("posix", "Darwin"), "win32": ("nt", "Windows")}
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def locked(**environment):
    """The version of each distribution that the lock has for an environment; this one's by default."""
    pins = [Requirement(line) for line in LINES]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): re.fullmatch(r"==([^*]+)", str(pin.specifier))[1] for pin in pins}
    assert len(versions) == len(pins), "a distribution has two versions"
    return versions


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_locked_versions_are_in_the_ranges(system, python):
    os_name, platform_system = SYSTEMS[system]
    names = {"sys_platform": system, "os_name": os_name, "platform_system": platform_system}
    versions = locked(python_version=python, python_full_version=f"{python}.9", **names)
    for needed in map(Requirement, NEEDED):
        assert needed.specifier.contains(versions[canonicalize_name(needed.name)]), needed


def needed_here():
    """The names of all distributions that this one needs here, with its extras, and theirs, and so on."""
    waiting, found = [Requirement("gradient-to-cluster[test]")], set()
    while waiting:
        one = waiting.pop()
        for line in distribution(one.name).requires or []:
            requirement = Requirement(line)
            extras = [{"extra": extra} for extra in one.extras] or [{"extra": ""}]
            marker = requirement.marker
            if marker is None or any(marker.evaluate(default_environment() | extra) for extra in extras):
                key = (canonicalize_name(requirement.name), *sorted(requirement.extras))
                if key not in found:
                    found.add(key)
                    waiting.append(requirement)
    return {name for name, *_ in found}


def test_the_lock_names_all_that_is_installed(request):
    versions, names = locked(), needed_here()
    here = {name: distribution(name).version.split("+")[0] for name in names}
    others = {name: version for name, version in here.items() if versions.get(name) != version}
    if others and not request.config.option.locked:
        pytest.skip(f"other versions than those of requirements.lock are installed: {others}")
    assert others == {} and len(here) > 100


def test_binder_installs_a_part_of_the_lock():
    lines = (ROOT / "binder" / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith(("#", "-"))]
    python = (ROOT / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    linux = {"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux"}
    versions = locked(python_version=python, python_full_version=f"{python}.99", **linux)
    versions["torch"] += "+cpu"
    assert {pin.name: str(pin.specifier)[2:] for pin in pins}.items() <= versions.items()
