"""A run folder holds only what was finished and is unchanged."""

import contextlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llm_rlhf.errors import RecipeError, RunFolderError
from llm_rlhf.run_folder import RunFolder, differences

INPUTS = {"seed": 0, "sft": {"learning_rate": 0.1}}


def make(run: RunFolder, stage: str = "sft", text: str = "weights") -> None:
    with run.making(stage, INPUTS) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.bin").write_text(text)


def test_what_was_made_is_finished(tmp_path) -> None:
    run = RunFolder(tmp_path)
    assert not run.finished("sft", INPUTS)
    make(run)
    assert run.finished("sft", INPUTS)
    assert run.manifest("sft")["files"]["sub/a.bin"]["bytes"] == 7
    assert not (tmp_path / "partial-sft").exists()


def test_fault_17_what_was_interrupted_is_not_finished_and_is_made_anew(tmp_path) -> None:
    run = RunFolder(tmp_path)
    make_half = run.making("sft", INPUTS)
    (make_half.__enter__() / "half").write_text("half")  # and never left, as by a kill
    assert not run.finished("sft", INPUTS)
    make(run)
    assert sorted(p.name for p in (tmp_path / "sft").iterdir()) == ["manifest.json", "sub"]


def test_a_flipped_bit_a_missing_file_and_a_missing_manifest_are_noticed(tmp_path) -> None:
    run = RunFolder(tmp_path)
    make(run)
    file = tmp_path / "sft" / "sub" / "a.bin"
    file.write_text("weightt")
    with pytest.raises(RunFolderError, match=r"a.bin is missing or has changed .*--from sft"):
        run.finished("sft", INPUTS)
    file.unlink()
    with pytest.raises(RunFolderError, match=r"a.bin is missing or has changed"):
        run.finished("sft", INPUTS)
    (tmp_path / "sft" / "manifest.json").unlink()
    with pytest.raises(RunFolderError, match=r"no readable manifest.json"):
        run.finished("sft", INPUTS)


def test_a_changed_recipe_is_named(tmp_path) -> None:
    run = RunFolder(tmp_path)
    make(run)
    with pytest.raises(RunFolderError, match=r"sft.learning_rate: 0.1 -> 0.2.*--from sft"):
        run.finished("sft", {"seed": 0, "sft": {"learning_rate": 0.2}})


def test_inputs_that_an_older_version_recorded_are_read_as_today(tmp_path) -> None:
    make(RunFolder(tmp_path))
    today = {"seed": 0, "tuning": INPUTS["sft"]}

    def as_today(inputs: dict) -> dict:
        return {"seed": inputs["seed"], "tuning": inputs["sft"]} if "sft" in inputs else inputs

    run = RunFolder(tmp_path, as_today)
    assert run.finished("sft", today)
    with pytest.raises(RunFolderError, match=r"tuning.learning_rate: 0.1 -> 0.2"):
        run.finished("sft", {"seed": 0, "tuning": {"learning_rate": 0.2}})
    (RunFolder(tmp_path).making("ppo", INPUTS).__enter__() / "half").write_text("half")  # interrupted, by the older one
    with run.making("ppo", today, resumes=True) as folder:
        assert (folder / "half").is_file()  # it goes on from there


def test_archive_moves_and_loses_nothing(tmp_path) -> None:
    run = RunFolder(tmp_path)
    make(run)
    assert run.archive(["sft", "ppo"]) == ["sft"]
    assert not run.finished("sft", INPUTS)
    assert [p.read_text() for p in (tmp_path / "archive").rglob("a.bin")] == ["weights"]
    make(run)
    run.archive(["sft"])  # within the same second: still another folder
    assert len(list((tmp_path / "archive").rglob("a.bin"))) == 2


def test_fault_21_a_second_run_is_refused(tmp_path) -> None:
    run = RunFolder(tmp_path)
    code = (
        "import sys; from llm_rlhf.run_folder import *\n"
        "try:\n  with RunFolder(sys.argv[1]).locked(): print('in')\n"
        "except RunFolderError as e: print(e)"
    )
    with run.locked():
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "Another run is using" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "in"


def test_a_run_that_is_refused_leaves_no_folder_of_its_own(tmp_path) -> None:
    def refused(folder: Path, put: str = "") -> bool:
        with contextlib.suppress(RecipeError), RunFolder(folder).locked():
            if put:
                (folder / put).write_text("")
            raise RecipeError("no")
        return folder.exists()

    assert not refused(tmp_path / "new")
    assert refused(tmp_path / "begun", put="recipe.yaml")
    (tmp_path / "there").mkdir()
    assert refused(tmp_path / "there"), "it was somebody's"


def test_fault_12_a_folder_that_cannot_be_written_is_said_at_once(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be written"):
        RunFolder(tmp_path / "file" / "run")


def test_a_folder_that_is_only_read_may_lie_where_nothing_can_be_written(tmp_path) -> None:
    assert RunFolder("/proc/self", written=False).path == Path("/proc/self")
    RunFolder(tmp_path / "none", written=False)
    assert not (tmp_path / "none").exists()


def test_what_somebody_laid_into_a_finished_stage_is_not_deleted_with_its_checkpoints(tmp_path) -> None:
    run = RunFolder(tmp_path)
    make(run)
    for name in ("checkpoint-notes", "checkpoint-8", "checkpoint-8-damaged"):
        (tmp_path / "sft" / name).mkdir()
    assert run.finished("sft", INPUTS)
    assert [path.name for path in (tmp_path / "sft").glob("checkpoint-*")] == ["checkpoint-notes"]


def test_a_launch_is_described(tmp_path) -> None:
    RunFolder(tmp_path).describe({"name": "x", "seed": 0})
    described = json.loads((tmp_path / "manifest.json").read_text())
    assert described["versions"]["trl"].startswith("1.16")
    assert (tmp_path / "recipe.yaml").read_text() == "name: x\nseed: 0\n"


def test_differences_names_keys() -> None:
    assert differences({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [2]}, "d": 3}) == [
        "b.c: [1] -> [2]",
        "d: not set -> 3",
    ]
    assert differences({"a": 1}, {"a": 1}) == []


def test_differences_of_rows_and_sections_name_the_keys_that_differ() -> None:
    suite = {"name": "xstest", "source": "x.csv", "columns": {}, "split": "train", "limit": None, "seed": 3}
    assert differences({"own": [suite]}, {"own": [suite | {"limit": 9}]}) == ["own.0.limit: not set -> 9"]
    assert differences({"own": []}, {"own": [suite]}) == [
        "own.0: not set -> {name: 'xstest', source: 'x.csv', split: 'train', ...}"
    ]
    assert differences({"sft": {"lora": {"r": 4}}}, {"sft": None}) == ["sft: {lora: {r: 4}} -> not set"]
    assert differences({"own": [suite]}, {"own": [suite]}) == []


def test_more_changes_than_a_reader_takes_up_are_counted(tmp_path) -> None:
    run = RunFolder(tmp_path)
    with run.making("sft", dict.fromkeys("abcdefg", 0)):
        pass
    with pytest.raises(RunFolderError, match=r"recipe: a: 0 -> 1; .*; e: 0 -> 1; and 2 more\. Run with"):
        run.finished("sft", dict.fromkeys("abcdefg", 1))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_what_a_library_wrote_for_its_owner_alone_is_read_by_whom_the_umask_says(tmp_path, umask, mode) -> None:
    before = os.umask(umask)
    try:
        run = RunFolder(tmp_path)
        with run.making("sft", INPUTS) as folder:
            (folder / "sub").mkdir()
            for name, of in (("weights", 0o600), ("script", 0o700)):
                (folder / "sub" / name).touch()
                (folder / "sub" / name).chmod(of)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "sft" / "sub").iterdir()}
    assert modes == {"weights": mode, "script": 0o700 | mode}
    assert sorted(run.manifest("sft")["files"]) == ["sub/script", "sub/weights"]  # no probe is left


def test_names_in_the_archive_are_paths(tmp_path: Path) -> None:
    assert RunFolder(tmp_path) / "x" == tmp_path / "x"


def test_checkpoints_stay_until_the_artefact_is_there_and_are_no_part_of_it(tmp_path, monkeypatch) -> None:
    """Killed behind a training and before its manifest, a stage goes on from the checkpoint of its last step."""

    def train(run: RunFolder) -> None:
        with run.making("sft", INPUTS, resumes=True) as folder:
            for name in ("checkpoint-4", "joint/checkpoint-8"):
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / "weights").write_text(name)
            (folder / "adapter").write_text("trained")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    run = RunFolder(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    assert (tmp_path / "partial-sft" / "joint" / "checkpoint-8" / "weights").is_file()
    assert (tmp_path / "partial-sft" / "inputs.json").is_file()
    train(run)
    assert run.finished("sft", INPUTS)
    assert list(run.manifest("sft")["files"]) == ["adapter"]
    assert sorted(path.name for path in (tmp_path / "sft").iterdir()) == ["adapter", "joint", "manifest.json"]
