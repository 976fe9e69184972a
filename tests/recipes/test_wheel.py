"""What is installed is what is here: every file of the package, and the data that ships."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = {"base": (".json", ".safetensors", ".jinja"), "evaluation": (".jsonl", ".md")}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_its_data(tmp_path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="the build backend; it is fetched where pip builds")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("llm_rlhf", "data"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, "."],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {p.relative_to(source).as_posix() for p in (source / "llm_rlhf").rglob("*") if p.is_file()}
    assert {name for name in names if name.startswith("llm_rlhf/")} == package
    data = {
        f"{kind}/{path.name}"
        for kind, endings in SHIPPED.items()
        for path in (source / "data" / kind).iterdir()
        if path.suffix in endings
    }
    assert {"/".join(name.split("/")[-2:]) for name in names if ".data/data/share/llm-rlhf/" in name} == {
        *data,
        "llm-rlhf/constraints.txt",
    }
    assert {"base/model.safetensors", "evaluation/harmful.jsonl"} <= data
