"""What comes with the package and is no code is found in a clone and wherever an installer put it."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from llm_rlhf import shipped
from llm_rlhf.doctor import packages
from llm_rlhf.evaluation.suites.refusals import FILES
from llm_rlhf.world.base_model import shipped_base

ROOT = Path(__file__).parents[2]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_is_told_to_hold_what_a_clone_does() -> None:
    """tests/recipes/test_wheel.py looks into a wheel; this one takes no build."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["data-files"]
    told: dict[str, set[str]] = {name: set() for name in shipped.PLACES}
    for place, patterns in tables.items():
        name, _, below = place.removeprefix("share/llm-rlhf").strip("/").partition("/")
        for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
            told[name or path.name].add(f"{below}/{path.name}".lstrip("/") if name else path.name)
    assert told["base"] == files_of(ROOT / "data" / "base") - {"make.py"}
    assert told["evaluation"] == files_of(ROOT / "data" / "evaluation") >= set(FILES)
    assert told["recipes"] == files_of(ROOT / "recipes")
    assert told["constraints.txt"] == {"constraints.txt"}


def test_a_clone_is_found_beside_the_package() -> None:
    assert {name: shipped.shipped(name) for name in shipped.PLACES} == {
        name: ROOT / place for name, place in shipped.PLACES.items()
    }
    assert all(shipped.shipped(name).exists() for name in shipped.PLACES)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another user's environment: a site-packages in which strangers have put `recipes` and a `pyproject.toml`."""
    site = tmp_path / "lib" / "python" / "site-packages"
    (site / "recipes").mkdir(parents=True)
    (site / "pyproject.toml").write_text("")
    (site / "recipes" / "quickstart.yaml").write_text("theirs")
    monkeypatch.setattr(shipped, "ROOT", site)
    monkeypatch.setattr(shipped.sysconfig, "get_path", lambda name: str(tmp_path / "usual"))
    return site


def ours(folder: Path) -> Path:
    (folder / "share" / "llm-rlhf" / "recipes").mkdir(parents=True)
    (folder / "share" / "llm-rlhf" / "constraints.txt").write_text("trl==1.2.3\n")
    return folder / "share" / "llm-rlhf"


def record(monkeypatch: pytest.MonkeyPatch, site: Path, *names: str) -> None:
    """The installer's record; None is what a record that was lost gives."""
    info = site / "llm_rlhf-0.1.0.dist-info"
    info.mkdir()
    if names:
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-rlhf\nVersion: 0.1.0\n")
    monkeypatch.setattr(shipped.metadata, "files", lambda name: metadata.Distribution.at(info).files)


@pytest.mark.parametrize(
    ("place", "names"),
    [
        # An environment or `--user`: three up from site-packages. sysconfig would answer for another of the two.
        ("lib/python/site-packages/../../..", ["llm_rlhf/cli/main.py", "../../../share/llm-rlhf/constraints.txt"]),
        # `--target`: pip moves `share` beside the package and leaves its record as it was.
        ("lib/python/site-packages", ["../../share/llm-rlhf/constraints.txt"]),
        ("usual", []),  # no record
    ],
)
def test_an_installed_package_finds_its_own(tmp_path, site, monkeypatch, place, names) -> None:
    folder = ours((tmp_path / place).resolve())
    record(monkeypatch, site, *names)
    assert shipped.shipped("recipes").resolve() == folder / "recipes"
    assert packages.tested_versions() == {"trl": "1.2.3"}


def test_what_is_nowhere_is_told_with_the_usual_place(tmp_path, site, monkeypatch) -> None:
    record(monkeypatch, site)
    assert shipped.shipped("recipes") == tmp_path / "usual" / "share" / "llm-rlhf" / "recipes"
    assert packages.tested_versions() == {}
    with pytest.raises(ValueError, match=r"base model is not in .*usual/share/llm-rlhf/base; install llm-rlhf from a"):
        shipped_base()


def test_no_record_of_the_package_at_all(tmp_path, site, monkeypatch) -> None:
    def unknown(name: str) -> list:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(shipped.metadata, "files", unknown)
    folder = ours(site)
    assert shipped.shipped("constraints.txt") == folder / "constraints.txt"
