"""The hub gets a whole export or nothing, and is asked who we are before anything is written."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from planted_runs import bad_run

from llm_rlhf.cli.main import app
from llm_rlhf.errors import RecipeError, RunError
from llm_rlhf.export.folder import export
from llm_rlhf.run_folder import write_json


@pytest.fixture
def asked(monkeypatch) -> list:
    """A hub that takes everything; what it was asked."""
    calls: list = []

    def create(_self, repo_id: str, **options) -> str:
        calls.append(("create", repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def upload(_self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr(HfApi, "whoami", lambda _self: {"name": "me"})
    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "model_info", lambda _self, repo: SimpleNamespace(private=repo != "me/open"))
    return calls


def test_a_private_repository_gets_the_folder(hub, make_run, tmp_path, asked) -> None:
    made = export(str(make_run()), to=str(tmp_path / "out"), push="me/hh", despite_gate=True, say=lambda line: None)
    assert made.url == "https://huggingface.co/me/hh"
    assert asked[0] == ("create", "me/hh", {"private": True, "exist_ok": True})
    assert asked[1][:2] == ("upload", "me/hh")
    assert {"adapter_model.safetensors", "README.md", "tokenizer.json", "generation_config.json"} <= set(asked[1][2])
    assert 'name = "me/hh"' in (made.folder / "README.md").read_text()
    assert made.private is True


def test_a_repository_that_is_public_stays_so_and_that_is_said(hub, make_run, tmp_path, asked, capsys) -> None:
    """`create_repo` leaves one that is there as it is, whatever it is asked for."""
    command = ["export", str(make_run()), "--to", str(tmp_path / "out"), "--push", "me/open", "--despite-gate"]
    app(command, standalone_mode=False)
    assert "On the hub, PUBLIC, as it was: https://huggingface.co/me/open" in capsys.readouterr().out


def test_who_is_not_logged_in_is_told_before_anything_is_written(hub, make_run, tmp_path, monkeypatch) -> None:
    def nobody(_self) -> None:
        raise LocalTokenNotFoundError

    monkeypatch.setattr(HfApi, "whoami", nobody)
    with pytest.raises(RecipeError, match=r"--push me/hh: .*nobody is logged in\); log in \(hf auth login\), or leave"):
        export(
            str(make_run()),
            merge=True,
            to=str(tmp_path / "out"),
            push="me/hh",
            despite_gate=True,
            say=lambda line: None,
        )
    assert not (tmp_path / "out").exists()


def test_what_was_not_measured_is_not_pushed_unless_that_is_said(hub, make_run, tmp_path, asked) -> None:
    with pytest.raises(
        RunError, match=r"Nothing was measured of .*hh; evaluate it .* or push it all the same with --d"
    ):
        export(str(make_run()), to=str(tmp_path / "out"), push="me/hh", say=lambda line: None)
    assert asked == []
    assert not (tmp_path / "out").exists()


def test_what_does_not_pass_its_gate_is_not_pushed(hub, make_run, tmp_path, asked) -> None:
    run = make_run()
    write_json(run / "report.json", {"run": {"recipe": ""}, "estimates": [e.as_dict() for e in bad_run()]})
    with pytest.raises(
        RunError, match=r"does not pass its gate \(llm-rlhf gate .*\):\n  FAIL +harmless: .*\n  FAIL .*\nMend it"
    ):
        export(str(run), to=str(tmp_path / "out"), push="me/hh", say=lambda line: None)
    assert asked == []


@pytest.mark.parametrize("repo", ["hh", "a/b/c", "me/hh!"])
def test_what_is_no_id_is_refused(hub, make_run, asked, repo) -> None:
    with pytest.raises(RecipeError, match=r"--push"):
        export(str(make_run()), push=repo, say=lambda line: None)
    assert asked == []


def test_a_hub_that_refuses_leaves_the_folder(hub, make_run, tmp_path, asked, monkeypatch) -> None:
    def full(_self, **_options) -> None:
        raise OSError("507 Insufficient Storage\nmore")

    monkeypatch.setattr(HfApi, "upload_folder", full)
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"The export is at .*out, but the hub did not take it \(507 Insufficient St"):
        export(str(make_run()), to=str(out), push="me/hh", despite_gate=True, say=lambda line: None)
    assert (out / "README.md").is_file()
