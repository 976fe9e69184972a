"""Every recipe that ships, every command of the README, and the promise about telemetry."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm_rlhf.recipe.loading import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_are_valid_and_open_with_their_header(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    header = path.read_text().split("name:")[0]
    assert all(word in header for word in ("# Purpose:", "# Hardware:", "# Result:", "# Launch:"))


def test_the_recipe_in_the_readme_is_valid(tmp_path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    (tmp_path / "readme.yaml").write_text(block)
    assert load_recipe(tmp_path / "readme.yaml").ppo["kl_coef"] == 0.05


def commands() -> list[str]:
    blocks = [text for language, text in re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M) if not language]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if "llm_rlhf run" in line or line.startswith("llm-rlhf run")]


def test_the_readme_shows_commands() -> None:
    assert len(commands()) >= 5


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_readme_name_a_valid_recipe_and_overrides(command: str) -> None:
    words = shlex.split(command)
    arguments = words[words.index("run") + 1 :]
    assert {a for a in arguments if a.startswith("--")} <= {"--from", "--only"}
    recipe, *overrides = [a for a in arguments if not a.startswith("--") and a not in ("ppo", "sft")]
    load_recipe(ROOT / recipe, overrides)
    if "--config_file" in words:
        config = yaml.safe_load((ROOT / words[words.index("--config_file") + 1]).read_text())
        assert config["distributed_type"] == "MULTI_GPU"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_telemetry_is_off_before_the_first_import_of_trl() -> None:
    code = (
        "import sys, llm_rlhf, os; assert 'trl' not in sys.modules and 'huggingface_hub' not in sys.modules;"
        "from llm_rlhf import PPOTrainer; from huggingface_hub import constants;"
        "print(constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_pins_are_within_the_ranges_of_the_package() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    pins = {name.lower(): version for name, version in pins.items()}
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.name.lower() in pins, requirement.name
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text
