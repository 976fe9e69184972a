"""Files of a run that are missing, changed or half written are told of by every command that would load them."""

import json
import shutil
from pathlib import Path

import pytest
from chain_helpers import copy
from test_requests import ask, refused

from llm_rlhf import checkpoints
from llm_rlhf.errors import RunFolderError
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.run_folder import MANIFEST, RunFolder
from llm_rlhf.unchanged import check_report_unchanged, check_unchanged

BROKEN = {"empty": "{}", "a list": "[1]", "null": "null", "half": '{"files": {"a', "nothing": "", "text": '"a"',
          "files of a list": '{"files": ["a"]}', "files of text": '{"files": {"a": "b"}}',
          "inputs of a list": '{"files": {}, "inputs": [1]}'}  # fmt: skip


@pytest.fixture
def stage(tmp_path) -> Path:
    """A finished stage of two parts."""
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    with RunFolder(tmp_path).making("sft", {}) as folder:
        for part in ("model", "adapter"):
            (folder / part).mkdir()
            (folder / part / "weights").write_bytes(b"\0" * 64)
    return tmp_path / "sft"


def flip(path: Path, at: int = -1) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_fault_14_a_changed_bit_is_told_of_where_its_part_is_loaded(stage) -> None:
    check_unchanged([stage, stage / "model", stage / "adapter" / "weights", "Qwen/Qwen2.5-0.5B", None])
    flip(stage / "model" / "weights")
    check_unchanged([stage / "adapter"])
    for place in (stage, stage / "model", stage / "model" / "weights"):
        with pytest.raises(RunFolderError, match=r"model/weights is missing or has changed .*--from sft"):
            check_unchanged([place])
    (stage / "adapter" / "weights").unlink()
    with pytest.raises(RunFolderError, match="adapter/weights is missing"):
        check_unchanged([stage / "adapter"])


@pytest.mark.parametrize(("inside", "named"), [("model", "."), (".", "model"), (".", "model/weights"), ("..", "link")])
def test_fault_14_a_part_is_held_against_its_stage_however_it_is_named(stage, monkeypatch, inside, named) -> None:
    (stage.parent / "link").symlink_to(stage / "model")
    monkeypatch.chdir(stage / inside)
    check_unchanged([named])
    flip(stage / "model" / "weights")
    with pytest.raises(RunFolderError, match=r"model/weights is missing or has changed .*--from sft"):
        check_unchanged([named])


def test_a_link_to_a_stage_on_another_disk_is_part_of_the_run_that_it_stands_in(stage, tmp_path) -> None:
    elsewhere = tmp_path / "disk" / "of-sft"
    elsewhere.parent.mkdir()
    stage.rename(elsewhere)
    stage.symlink_to(elsewhere)
    flip(elsewhere / "model" / "weights")
    with pytest.raises(RunFolderError, match="model/weights is missing or has changed"):
        check_unchanged([stage / "model"])


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_fault_13_a_manifest_that_is_none_makes_no_finished_stage(stage, text) -> None:
    (stage / MANIFEST).write_text(text)
    run = RunFolder(stage.parent)
    with pytest.raises(RunFolderError, match=r"no readable manifest.json, .*--from sft"):
        run.finished("sft", {})
    with pytest.raises(RunFolderError, match="is not finished"):
        run.manifest("sft")
    with pytest.raises(RunFolderError, match=r"manifest.json cannot be read.*--from sft"):
        check_unchanged([stage / "model"])


def test_files_that_are_part_of_no_run_are_not_looked_at(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / MANIFEST).write_text("[]")  # a web application's, say
    check_unchanged([tmp_path / "model"])
    check_report_unchanged(tmp_path)


@pytest.mark.slow
def test_fault_14_no_command_loads_what_has_changed(finished, tmp_path) -> None:
    run = copy(finished, tmp_path)
    asked = {
        "sft/model/model.safetensors": [["chat", run], ["evaluate", run], ["export", run], ["chat", f"{run}:sft"]],
        "ppo/policy/adapter_model.safetensors": [["chat", run], ["evaluate", run], ["export", run]],
        "reward/joint/adapter_model.safetensors": [
            ["chat", run],
            ["evaluate", run],
            ["evaluate", "--reward", run / "reward/joint", "--pairs", run / "world/preferences.jsonl"],
        ],
        "evaluate/replies.jsonl": [["gate", run], ["compare", run, finished]],
        "report.json": [["gate", run], ["compare", run, finished]],
    }
    for name, commands in asked.items():
        whole = (run / name).read_bytes()
        flip(run / name, at=-100)
        for arguments in commands:
            refused(
                ask(*map(str, arguments), *(["--output", str(tmp_path / "out")] if arguments[0] == "evaluate" else [])),
                name,
            )
        (run / name).write_bytes(whole)
    assert ask("chat", f"{run}:sft", "--no-reward").exit_code == 0
    flip(run / "ppo/policy/adapter_model.safetensors")
    assert ask("chat", f"{run}:sft", "--no-reward").exit_code == 0, "what is not loaded is not read"


@pytest.mark.slow
def test_a_run_whose_own_manifest_is_none_goes_on(finished, tmp_path, capsys) -> None:
    run = copy(finished, tmp_path)
    for text in ("[]", "null", "{", ""):
        (run / MANIFEST).write_text(text)
        recipe = load_recipe(tmp_path / "tiny.yaml", [f"output_dir={run}"])
        run_recipe(recipe)
    assert capsys.readouterr().out.count("done before") == 20
    assert json.loads((run / MANIFEST).read_text())["chat_template_date"]
    shutil.rmtree(run)


@pytest.mark.parametrize("text", [*BROKEN.values(), '{"state": {}}', '{"files": {}}', '{"state": [], "files": {}}'])
def test_fault_13_a_seal_that_is_none_makes_no_whole_checkpoint(tmp_path, text) -> None:
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.seal(tmp_path / f"checkpoint-{step}", {"processes": 1})
    (tmp_path / "checkpoint-2" / checkpoints.COMPLETE).write_text(text)
    assert checkpoints.sealed_state(tmp_path / "checkpoint-2") is None
    assert checkpoints.sealed_state(tmp_path / "checkpoint-1") == {"processes": 1}
