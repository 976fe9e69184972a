"""Python and the packages: whether they are in the ranges of the package, and which versions it was tested with."""

import platform
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from llm_rlhf.doctor.findings import Finding
from llm_rlhf.shipped import shipped

PINS = "constraints.txt"
UPGRADE = "pip install --upgrade"


def python() -> Finding:
    """The interpreter against what the package asks for."""
    wanted = metadata.metadata("llm-rlhf")["Requires-Python"]
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    remedy = "" if fits else f"Install Python {wanted} and make the environment anew."
    return Finding("Python", "good" if fits else "broken", platform.python_version(), remedy)


def versions() -> Finding:
    """The required packages: those that are missing or out of range, and those that are not the tested ones."""
    wrong, other, there = [], [], []
    tested = tested_versions()
    for requirement in map(Requirement, metadata.requires("llm-rlhf") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        there.append(requirement.name)
        pinned = tested.get(canonicalize_name(requirement.name))
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
        elif pinned is not None and found.partition("+")[0] != pinned:  # "+cpu" names a build
            other.append(f"{requirement.name} {found} (tested: {pinned})")
    if wrong:
        return Finding("versions", "broken", "; ".join(wrong), f"{UPGRADE} llm-rlhf, or {PINS} has what fits.")
    if other:
        remedy = "They are in range. Where something is odd, install the tested ones: pip install -c constraints.txt."
        return Finding("versions", "note", ", ".join(other), remedy)
    known = "all in range" + (" and as tested" if tested else "; which were tested is not known here")
    return Finding("versions", "good", f"{len(there)} packages, {known}")


def tested_versions() -> dict[str, str]:
    """What the tests and the measurements were run with, by the package's canonical name."""
    path = shipped(PINS)
    if not path.is_file():
        return {}
    pins = (line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {canonicalize_name(name.strip()): version.strip() for name, version in pins}
