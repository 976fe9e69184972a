"""Every recipe that ships; every command, code block and link of the pages; and the promise about telemetry."""

import ast
import functools
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from accelerate.commands.launch import launch_command_parser

from llm_rlhf.cli.main import app
from llm_rlhf.ppo.prompts import small_rollout
from llm_rlhf.recipe.loading import load_recipe, trainer_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
LINKING = sorted([*PAGES, *ROOT.glob("benchmarks/*.md"), *ROOT.glob("data/**/*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHELL = ("", "console", "bash", "sh")
README = (ROOT / "README.md").read_text(encoding="utf-8")
LONGEST_README = 150  # lines; what is longer than that belongs on a page of its own


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```([\w{}-]*)[^\n]*\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


def commands() -> list[Any]:
    """Every line of the pages' shell blocks, and of the examples' docstrings that starts with our command."""
    found = [
        (path, re.split(r"\s#\s", line)[0].strip())
        for path in PAGES
        for language, text in blocks(path)
        if language in SHELL
        for line in text.splitlines()
    ]
    for path in EXAMPLES:
        told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        ours = (line.strip() for line in told.splitlines() if line.strip().startswith("llm-rlhf "))
        found += [(path, re.split(r"\s#\s", line)[0].strip()) for line in ours]
    return [pytest.param(path, line, id=f"{named(path)}: {line}") for path, line in found if line]


def plain(text: str) -> str:
    """The page without its blocks and code spans, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_are_valid_and_open_with_their_header(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    header = path.read_text().split("name:")[0]
    assert all(word in header for word in ("# Purpose:", "# Hardware:", "# Result:", "# Launch:"))


def test_the_recipe_in_the_readme_is_valid(tmp_path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    (tmp_path / "readme.yaml").write_text(block)
    recipe = load_recipe(tmp_path / "readme.yaml")
    assert recipe.ppo["kl_coef"] == 0.05
    assert small_rollout(trainer_config(recipe, "ppo", tmp_path)) is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_no_recipe_makes_rollouts_too_small_to_learn_from(path: Path, tmp_path) -> None:
    recipe = load_recipe(path)
    assert small_rollout(trainer_config(recipe, "ppo", tmp_path)) is None


def test_where_the_commands_are_is_said(tmp_path) -> None:
    """Make installs them into an environment that no shell has activated."""
    assert "`. .venv/bin/activate`" in README
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    ready = makefile[makefile.index("$(READY): ") : makefile.index("clean:\n")]
    assert "@echo 'The commands are in $(BIN): $(BIN)/llm-rlhf" in ready


# --- pages ----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= LONGEST_README


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#]+\.md)\)", index)}
    pages = {path for path in LINKING if path != ROOT / "docs" / "index.md"}
    assert pages - linked == set()  # the site takes its order from there


def test_the_pages_show_commands() -> None:
    shown = [parameter.values[1] for parameter in commands()]
    for start in ("llm-rlhf run", "llm-rlhf evaluate", "llm-rlhf data check", "accelerate launch", "make "):
        assert any(line.startswith(start) for line in shown), start


@pytest.mark.parametrize(("path", "line"), commands())
def test_a_command_is_one_that_would_be_understood(path: Path, line: str) -> None:
    program, *words = shlex.split(re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line))
    if program == "accelerate":
        assert words.pop(0) == "launch"
        launched = launch_command_parser().parse_args(words)  # exits where an option is not known
        assert (launched.module, launched.training_script) == (True, "llm_rlhf")
        if launched.config_file:
            config = yaml.safe_load((ROOT / launched.config_file).read_text())
            assert config["distributed_type"] in ("MULTI_GPU", "FSDP")
        program, words = "llm-rlhf", launched.training_script_args
    if program == "llm-rlhf":
        understood(words)
    elif program == "python":
        assert words[:2] == ["-m", "pip"] or (ROOT / words[0]).is_file()
    else:  # a target of the Makefile is checked below
        assert program in ("make", "pre-commit", "."), f"{program} is no command that is checked"


def understood(words: list[str]) -> None:
    """Parse a line of ours down to its command, whose options typer then knows; a recipe is read with its overrides."""
    if words == ["--help"]:
        return
    command: Any = typer.main.get_command(app)
    context = None
    while hasattr(command, "commands"):
        name, *words = words
        command, context = (
            command.commands[name],
            command.make_context(name, [], parent=context, resilient_parsing=True),
        )
    context = command.make_context(name, words, parent=context)  # raises where an option is not known
    recipe = context.params.get("recipe")
    if recipe is not None:
        loaded = load_recipe(ROOT / recipe, context.params.get("overrides") or ())
        for option in ("only", "from_stage"):
            assert context.params.get(option) is None or getattr(loaded, context.params[option]) is not None


def test_make_targets_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shell = [
        line for path in PAGES for language, text in blocks(path) if language in SHELL for line in text.splitlines()
    ]
    told = [path.read_text(encoding="utf-8") for path in PAGES]
    targets = set(re.findall(r"^make ([a-z-]+)", "\n".join(shell), re.M)) | set(
        re.findall(r"`make ([a-z-]+)", "\n".join(told))
    )
    assert {"quickstart", "test", "check"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


PYTHON = [
    pytest.param(text, id=f"{named(path)}-{number}")
    for path in PAGES
    for number, (language, text) in enumerate(blocks(path))
    if language == "python"
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_of_the_pages_compiles_and_imports_what_there_is(text: str) -> None:
    compile(text, "page", "exec")
    check_imports(text)


def test_scripts_beside_the_package_import_what_there_is() -> None:
    found = [path for folder in ("benchmarks", "data", "examples") for path in (ROOT / folder).rglob("*.py")]
    scripts = [path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    assert len(scripts) > 10
    for path in scripts:
        check_imports(path.read_text(encoding="utf-8"))


def check_imports(text: str) -> None:
    """ImportError, AttributeError where a name that the text takes from the package is not there."""
    ours = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llm_rlhf"
    ]
    for node in ours:
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")


def test_dotted_names_of_the_pages_exist() -> None:
    for path in PAGES:
        for name in re.findall(r"llm_rlhf(?:\.[A-Za-z_]\w*)+", path.read_text(encoding="utf-8")):
            module, found = name, None
            while found is None:
                try:
                    found = importlib.import_module(module)
                except ModuleNotFoundError:
                    module = module.rpartition(".")[0]
            for attribute in name[len(module) + 1 :].split(".") if name != module else []:
                found = getattr(found, attribute)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_files_that_a_page_names_exist(path: Path) -> None:
    """A file in a code span is the end of the path of one that there is."""
    folders = ("llm_rlhf", "tests", "benchmarks", "data", "examples", "recipes")
    known = [f"/{named(file)}" for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    ours = "|".join(folders)
    told = re.findall(rf"`(?:python )?([\w./-]+\.py|(?:{ours})/[\w./-]+\.\w+)", path.read_text(encoding="utf-8"))
    outside = {"data/counts.json", "data/quarantine.jsonl"}  # of a run's folder
    assert [name for name in told if name not in outside and not any(k.endswith(f"/{name}") for k in known)] == []


@pytest.mark.parametrize("path", LINKING, ids=named)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", plain(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_pages_named_in_the_code_exist() -> None:
    for path in [*(ROOT / "llm_rlhf").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *ROOT.glob("benchmarks/*.py")]:
        for name in re.findall(r"(?:docs|benchmarks)/[\w-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{named(path)} names {name}"


# --- the package ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in (*project["dependencies"], *extras["dev"], *extras["docs"])]
    for requirement in (one for one in wanted if one.name != project["name"]):
        assert requirement.name.lower() in pins, requirement.name
        assert requirement.specifier.contains(pins[requirement.name.lower()]), str(requirement)
