"""What is served, and what is told before anything is loaded; the server itself is transformers'."""

import socket

import pytest
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.errors import RecipeError
from llm_rlhf.export import serving


def test_missing_packages_are_told_with_the_extra_that_brings_them(monkeypatch) -> None:
    monkeypatch.setattr(serving, "is_serve_available", lambda: False)
    asked = CliRunner().invoke(app, ["serve", "runs/nowhere"])
    assert asked.exit_code == 2
    assert "pip install 'llm-rlhf[serve]'" in asked.output + asked.stderr


def test_a_port_that_is_taken_is_told_first(monkeypatch) -> None:
    monkeypatch.setattr(serving, "is_serve_available", lambda: True)
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=rf"--port {port}: nothing can listen there \(Address already in use\)"):
            serving.check_can_serve("localhost", port)
    serving.check_can_serve("localhost", port)  # now it is free


def test_a_run_is_exported_into_its_cache_once(hub, make_run, capsys) -> None:
    run = make_run()
    folder, trusted = serving.folder_to_serve(str(run))
    assert not trusted
    assert folder == run / "cache" / "serve" / "hh"
    assert (folder / "model.safetensors").is_file()
    assert "writing whole weights" in capsys.readouterr().out
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert serving.folder_to_serve(str(run))[0] == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    weights = run / "ppo" / "policy" / "adapter_model.safetensors"
    weights.write_bytes((run / "sft" / "adapter" / "adapter_model.safetensors").read_bytes())  # trained anew
    serving.folder_to_serve(str(run))
    assert (folder / "model.safetensors").stat().st_mtime_ns != made


def test_a_model_is_served_where_it_lies_and_a_lone_adapter_is_not(hub, make_run, base_folder) -> None:
    assert serving.folder_to_serve(str(base_folder)) == (base_folder, False)
    run = make_run(sft=False)
    with pytest.raises(RecipeError, match=r"is an adapter; make whole weights first: llm-rlhf export .* --merge"):
        serving.folder_to_serve(str(run / "ppo" / "policy"))


def test_the_model_is_called_as_its_folder(monkeypatch, base_folder, tmp_path) -> None:
    """`transformers serve` finds a model by the name that requests give it."""
    import transformers.cli.serve as upstream

    asked = {}
    monkeypatch.setattr(upstream, "Serve", lambda **options: asked.update(options))
    monkeypatch.chdir(tmp_path)
    serving.serve(base_folder, "localhost", 8001)
    assert asked == {"force_model": base_folder.name, "host": "localhost", "port": 8001, "trust_remote_code": False}
    assert (tmp_path / base_folder.name).exists() is False
    from pathlib import Path

    assert Path(base_folder.name).samefile(base_folder)  # from where it was started
