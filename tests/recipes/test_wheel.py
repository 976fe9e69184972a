"""What is installed is what is here: the source distribution is the clone, and the wheel made of it works by itself."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = {"base": "data/base", "evaluation": "data/evaluation", "recipes": "recipes"}  # in share/llm-rlhf
MADE = shutil.ignore_patterns(  # not in git: by tests, tools and commands
    "__pycache__", "*.pyc", "*.egg-info", ".git", ".venv", ".trl112", ".*_cache", ".hypothesis", "build", "dist",
    "runs", "exports", "evaluations", "comparison",
)  # fmt: skip


def done(*command: object, cwd: Path, **environment: str) -> str:
    """What the command printed; PYTHONPATH must not lead back here."""
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=here | environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-3000:]
    return ran.stdout


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would hand out; what somebody has beside it, such as a recipe of their own, is no part of it."""
    folder = tmp_path_factory.mktemp("clone") / "clone"
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return Path(shutil.copytree(ROOT, folder, ignore=MADE))
    known = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, known.split("\0")):
        if (ROOT / name).is_file():  # else it is deleted, and not yet told to git
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def source(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    pytest.importorskip("setuptools", minversion="77", reason="the build backend; it is fetched where pip builds")
    folder = tmp_path_factory.mktemp("source")
    building = shutil.copytree(clone, folder / "building")
    done("-c", "from setuptools import build_meta; build_meta.build_sdist('..')", cwd=building)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    asked = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source]
    done("-m", *asked, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_source_distribution_is_the_clone(clone: Path, source: Path) -> None:
    added = {"PKG-INFO", "setup.cfg"}
    packed = {name for name in files_of(source) if not name.startswith("llm_rlhf.egg-info/")}
    assert packed - added == files_of(clone)
    assert {"tests/conftest.py", "data/base/make.py", "data/README.md", "Makefile", "docs/conf.py"} <= packed


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_its_data(clone: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("llm_rlhf/")} == {
        f"llm_rlhf/{name}" for name in files_of(clone / "llm_rlhf")
    }
    shipped = {name.partition(".data/data/share/llm-rlhf/")[2] for name in names if ".data/data/" in name}
    data = {f"{name}/{file}" for name, place in DATA.items() for file in files_of(clone / place)}
    assert shipped == data - {"base/make.py"} | {"constraints.txt"}
    assert {"base/model.safetensors", "evaluation/harmful.jsonl", "recipes/methods/dpo.yaml"} <= shipped


@pytest.mark.slow
def test_an_installed_wheel_finds_what_came_with_it(wheel: Path, tmp_path: Path) -> None:
    """Beside the packages that are here, from an empty folder: recipes, base model, prompts and tested versions."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    done("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel, cwd=empty)
    code = """
import llm_rlhf
from llm_rlhf.cli.main import app
from llm_rlhf.shipped import PLACES, shipped
print(llm_rlhf.__file__, *map(shipped, PLACES), sep="\\n")
try:
    app(["init", "--recipes"])
except SystemExit as end:
    assert not end.code
"""
    told = done("-c", code, cwd=empty, PYTHONPATH=str(site)).splitlines()
    assert [Path(line).relative_to(site).as_posix() for line in told[:5]] == [
        "llm_rlhf/__init__.py",
        *(f"share/llm-rlhf/{name}" for name in ("base", "evaluation", "recipes", "constraints.txt")),
    ]
    assert files_of(empty / "recipes") == files_of(ROOT / "recipes")
    assert (site / "bin" / "llm-rlhf").is_file()
