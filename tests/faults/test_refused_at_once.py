"""What is wrong with a request is told before anything is loaded; a run of the gold world asks nobody outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
import yaml
from chain_helpers import TINY, write_recipe
from test_requests import ask, pairs, recipe_on, refused

from llm_rlhf.errors import RecipeError
from llm_rlhf.pipeline import inputs_as_today, stage_inputs
from llm_rlhf.recipe.loading import load_recipe

WATCHED = """
import socket, sys

def refuse(name):
    def attempt(*arguments, **options):
        with open("attempts", "a") as file:
            file.write(f"{name} {arguments[1:] or arguments}\\n")
        raise OSError("no network")
    return attempt

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(name))
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse(name))
from llm_rlhf.cli.main import main
sys.argv = ["llm-rlhf", *sys.argv[1:]]
main()
"""


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nothing_is_loaded(monkeypatch) -> None:
    def loads(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.AutoConfig):
        monkeypatch.setattr(kind, "from_pretrained", loads)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run"])
def test_fault_12_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    base_folder, tmp_path, place
) -> None:
    recipe_on(base_folder, tmp_path, pairs(40))
    (tmp_path / "file").write_text("here already")
    refused(ask("run", "recipe.yaml", f"output_dir={place}"), f"The run folder {place} cannot be written", "output_dir")
    assert (tmp_path / "file").read_text() == "here already"


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    "tagged",
    ["!!python/object/apply:os.mkdir [canary]", "!!python/object/new:os.mkdir [canary]", "!!python/name:os.mkdir",
     "!!python/module:os", "!canary {}"],
)  # fmt: skip
def test_fault_57_tags_that_make_objects_are_refused(tmp_path, tagged) -> None:
    path = write_recipe(tmp_path)
    refused(ask("run", path.name, f"name={tagged}"), "name=", "plain YAML")
    path.write_text(path.read_text() + f"gate: {tagged}\n")
    refused(ask("run", path.name), path.name, "plain YAML")
    assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.lerning_rate=1", ["sft.lerning_rate", "Did you mean 'sft.learning_rate'"]),
        ("trian=1", ["trian", "is unknown"]),
        ("seed=many", ["'seed'", "'many'", "type int"]),
        ("ppo.kl_coef=[1]", ["'ppo.kl_coef'", "[1]", "float"]),
        ("model=own", ["'model'", "'own'", "mapping"]),
        ("model.trust_remote_code=own", ["'model.trust_remote_code'", "'own'", "list"]),
        ("world=null", ["model.base"]),
    ],
)
def test_fault_57_unknown_keys_and_wrong_types_are_named(tmp_path, override, words) -> None:
    refused(ask("run", write_recipe(tmp_path).name, override), *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_fault_60_with_sockets_blocked_the_chain_passes_and_nobody_outside_is_asked(tmp_path) -> None:
    """Not told to be offline, and with the telemetry of the libraries as the package sets it."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "watched.py").write_text(WATCHED)
    environment = {name: value for name, value in os.environ.items() if not name.endswith(("_OFFLINE", "_TELEMETRY"))}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "watched.py", "run", "tiny.yaml"], env=environment, capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    attempts = Path("attempts").read_text() if Path("attempts").exists() else ""
    assert attempts == ""
    assert Path("runs/tiny/report.html").is_file()


@pytest.mark.parametrize("key", ["save_only_model", "ignore_data_skip", "enable_jit_checkpoint"])
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_what_would_make_an_interrupted_training_another_without_a_word_is_refused(tmp_path, stage, key) -> None:
    recipe = write_recipe(tmp_path, **{stage: {**TINY[stage], key: True}})
    with pytest.raises(RecipeError, match=rf"Recipe key '{stage}\.{key}' is set to True, but the run, which .* remove"):
        load_recipe(recipe)


def test_a_stage_that_was_finished_with_such_a_key_is_still_taken(tmp_path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, output_dir=str(tmp_path / "run")))
    inputs = stage_inputs(recipe, "ppo")
    assert inputs_as_today({**inputs, "sft": {**inputs["sft"], "save_only_model": True}})["sft"] == inputs["sft"]
