"""No range of ours allows a version whose weakness is known and mended, and what is pinned and installed lies in it."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOME = Path(__file__).parents[2]
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
OURS = [Requirement(text) for text in PROJECT["dependencies"]]
ALL = [*OURS, *(Requirement(text) for texts in PROJECT["optional-dependencies"].values() for text in texts)]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in (HOME / "constraints.txt").read_text().splitlines())
    if version
}
WEAK = {  # the last version with the weakness
    "transformers": ("5.2.99", "CVE-2026-1839, CVE-2026-4372: code of a repository without being asked"),
    "jinja2": ("3.1.5", "CVE-2025-27516: out of the sandbox that chat templates run in, by the |attr filter"),
    "torch": ("2.5.1", "CVE-2025-32434: code from a file that is read with weights_only"),
    "pyyaml": ("5.3.1", "CVE-2020-14343: code from a file that is read by the full loader"),
    "filelock": ("3.20.2", "CVE-2025-68146, CVE-2026-22701: a link in the place of the lock"),
    "datasets": ("2.15.0", "code of a repository without being asked: before 2.16 scripts ran"),
}


@pytest.mark.parametrize("name", WEAK)
def test_no_version_with_a_known_weakness_is_allowed(name) -> None:
    version, why = WEAK[name]
    (found,) = [requirement for requirement in OURS if requirement.name == name]
    assert not found.specifier.contains(version), why


@pytest.mark.parametrize("found", ALL, ids=str)
def test_what_is_pinned_and_what_is_installed_is_allowed(found) -> None:
    pin = PINS.get(canonicalize_name(found.name))
    assert pin is None or found.specifier.contains(pin)
    try:
        installed = metadata.version(found.name)
    except metadata.PackageNotFoundError:
        assert found not in OURS or found.marker is not None, f"{found} is not installed"
        return
    assert found.specifier.contains(installed, prereleases=True)


def test_every_package_that_it_takes_to_run_is_pinned() -> None:
    assert [str(found) for found in OURS if canonicalize_name(found.name) not in PINS] == []
