"""Trackers: one run of each for all stages, on files of this machine; what fails there ends nothing here."""

import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chain_helpers import copy

from llm_rlhf.errors import RecipeError
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.tracking import tracked

REPORT = {
    "estimates": [
        {"name": "gold_gain", "subject": "ppo", "split": "all", "estimate": 0.5, "low": 0.25, "high": 0.75},
        {"name": "kl", "subject": "ppo", "split": "2 turns", "estimate": 3.0, "low": None, "high": None},
    ],
    "overoptimization": {"points": [{"step": 4, "kl": 1.5, "reward": 0.1}, {"step": 8, "kl": 2.5, "reward": 0.2}]},
}


def train_twice(run: RunFolder, trackers: list[str], page: Path) -> None:
    """A launch that is interrupted, and one that goes on and evaluates."""
    page.write_text("# what was found")
    with tracked(trackers, run, "mine", {"seed": 0, "ppo": {"kl_coef": 0.1}}) as told:
        told.log("sft", 1, {"loss": 2.0})
        told.log("ppo", 1, {"objective/kl": 0.5, "note": "no number", "nothing": None, "yes": True})
    with tracked(trackers, run, "mine", {"seed": 0, "ppo": {"kl_coef": 0.1}}) as told:
        told.log("ppo", 2, {"objective/kl": 0.75})
        told.report(REPORT, [page])


def read_events(folder: Path) -> Any:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    read = event_accumulator.EventAccumulator(str(folder))
    read.Reload()
    return read


@pytest.mark.slow
def test_tensorboard_holds_stages_evaluation_and_curve_in_one_run(tmp_path) -> None:
    train_twice(RunFolder(tmp_path), ["tensorboard"], tmp_path / "report.md")
    read = read_events(tmp_path / "trackers" / "mine")
    points = {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}
    assert points == {
        "sft/loss": [(1, 2.0)],
        "ppo/objective/kl": [(1, 0.5), (2, 0.75)],
        "evaluate/gold_gain/ppo/estimate": [(0, 0.5)],
        "evaluate/gold_gain/ppo/low": [(0, 0.25)],
        "evaluate/gold_gain/ppo/high": [(0, 0.75)],
        "evaluate/kl/ppo/2 turns/estimate": [(0, 3.0)],
        "distance/kl": [(4, 1.5), (8, 2.5)],
        "distance/reward": [(4, pytest.approx(0.1)), (8, pytest.approx(0.2))],  # kept in single precision
    }
    assert {"recipe/text_summary", "report/text_summary"} <= set(read.Tags()["tensors"])


@pytest.mark.slow
def test_mlflow_goes_on_with_its_run_and_keeps_the_report(tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # without a database
    monkeypatch.setattr("socket.socket.connect", Exception)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    try:
        train_twice(RunFolder(tmp_path / "run"), ["mlflow"], tmp_path / "report.md")
        client = mlflow.MlflowClient()
        (experiment,) = mlflow.search_experiments(filter_string="name = 'llm-rlhf'")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_name == "mine"
        assert run.data.params == {"seed": "0", "ppo.kl_coef": "0.1"}
        kl = client.get_metric_history(run.info.run_id, "ppo/objective/kl")
        assert [(point.step, point.value) for point in kl] == [(1, 0.5), (2, 0.75)]
        assert run.data.metrics["evaluate/gold_gain/ppo/low"] == 0.25
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.md"]
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.slow
def test_trackio_goes_on_with_its_run(tmp_path, monkeypatch) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    utils = pytest.importorskip("trackio.utils")
    monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    train_twice(RunFolder(tmp_path / "run"), ["trackio"], tmp_path / "report.md")
    (database,) = (tmp_path / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    numbers = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert (1, {"ppo/objective/kl": 0.5}) in numbers
    assert (2, {"ppo/objective/kl": 0.75}) in numbers
    assert any(metrics.get("evaluate/gold_gain/ppo/high") == 0.75 for _, metrics in numbers)


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path, capsys) -> None:
    seen: list[tuple[dict, int]] = []

    def fail(*_args, **_kwargs) -> None:
        raise OSError("no space left")

    with tracked([], RunFolder(tmp_path), "mine", {}) as told:
        told.active = {
            "one": SimpleNamespace(name="one", log=fail, finish=fail),
            "two": SimpleNamespace(name="two", log=lambda v, step: seen.append((v, step)), finish=lambda: None),
        }
        told.log("ppo", 3, {"loss/policy": 1.0})
        told.log("ppo", 4, {"loss/policy": 2.0})
    assert seen == [({"ppo/loss/policy": 1.0}, 3), ({"ppo/loss/policy": 2.0}, 4)]
    assert capsys.readouterr().out.count("the tracker one failed and is left out from here on: no space left") == 1


def test_a_tracker_that_cannot_begin_is_told_before_training(tmp_path, monkeypatch) -> None:
    class Closed:
        name, requires_logging_directory = "aim", True

        def __init__(self, **_options) -> None:
            raise ConnectionError("nobody answers")

    monkeypatch.setitem(__import__("llm_rlhf.tracking", fromlist=["x"]).LOGGER_TYPE_TO_CLASS, "aim", Closed)
    with (
        pytest.raises(RecipeError, match=r"'report_to' names 'aim', which cannot begin: nobody answers"),
        tracked(["aim"], RunFolder(tmp_path), "mine", {}),
    ):
        pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[tensorbord]", r"'report_to' is 'tensorbord', which is not known.*tensorboard"),
        ("[clearml]", r"'report_to' names 'clearml', which is not installed: pip install clearml"),
        ("[comet_ml]", r"names 'comet_ml', which is not installed: pip install comet-ml"),
        ("tensorboard", r"'report_to'"),
    ],
)
def test_names_are_checked_with_the_recipe(value, message) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("recipes/quickstart.yaml", [f"report_to={value}"])


@pytest.mark.slow
def test_a_run_tells_its_trackers_of_its_stages_and_again_of_those_that_are_redone(finished, tmp_path) -> None:
    run = copy(finished, tmp_path)
    recipe = load_recipe(tmp_path / "tiny.yaml", [f"output_dir={run}", "report_to=[tensorboard]"])
    run_recipe(recipe, from_stage="ppo")
    read = read_events(run / "trackers" / "tiny")
    assert {"ppo/objective/kl", "evaluate/gold_gain/ppo/estimate"} <= set(read.Tags()["scalars"])
    assert not any(name.startswith(("sft/", "reward/")) for name in read.Tags()["scalars"])  # were done before
    run_recipe(recipe)  # nothing is left to make, and nobody is told
    assert len(list((run / "trackers" / "tiny").iterdir())) == 1
    run_recipe(recipe, from_stage="ppo")
    assert len(list((run / "trackers" / "tiny").iterdir())) == 1  # what is trained again is another run
    assert len(list(run.glob("archive/*/trackers/tiny"))) == 1
