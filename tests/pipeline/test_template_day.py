"""What a chat template takes for today is the day of a run's first launch, until the run is done."""

import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from chain_helpers import copy

from llm_rlhf.errors import RunFolderError
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe


class AYearOn(datetime.date):
    @classmethod
    def today(cls) -> "AYearOn":
        return cls(3026, 1, 1)


def again(folder: Path, *overrides: str) -> None:
    run_recipe(load_recipe(folder / "tiny.yaml", [f"output_dir={folder / 'run'}", *overrides]))


def recorded(run: Path) -> tuple[str | None, str | None]:
    launched = json.loads((run / "manifest.json").read_text())["chat_template_date"]
    return launched, yaml.safe_load((run / "recipe.yaml").read_text())["model"]["chat_template_date"]


def test_a_run_keeps_its_day(finished: Path, tmp_path: Path, monkeypatch) -> None:
    day = recorded(finished)[0]
    assert day is not None
    assert datetime.date.today() - datetime.date.fromisoformat(day) <= datetime.timedelta(days=1)  # midnight
    run = copy(finished, tmp_path)
    monkeypatch.setattr("llm_rlhf.pipeline.datetime", SimpleNamespace(date=AYearOn))
    again(tmp_path)  # nothing is made anew
    assert recorded(run) == (day, day)
    assert subject_of(str(run)).model.chat_template_date == datetime.date.fromisoformat(day)
    with pytest.raises(RunFolderError, match=r"made by another recipe: model.chat_template_date"):
        again(tmp_path, "model.chat_template_date=2001-01-01")


def test_a_run_of_a_version_that_knew_no_day_goes_on_without(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    for manifest in run.rglob("manifest.json"):
        known = json.loads(manifest.read_text())
        known.pop("chat_template_date", None)
        for key in ("chat_template_date", "chat_template_kwargs"):
            known.get("inputs", {}).get("model", {}).pop(key, None)
        manifest.write_text(json.dumps(known))
    again(tmp_path)
    assert recorded(run) == (None, None)


@pytest.mark.parametrize("day", ["yesterday", 5])
def test_a_day_that_is_none_is_told(day, finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    known = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(known | {"chat_template_date": day}))
    with pytest.raises(RunFolderError, match=f"says chat_template_date: {day!r}, which is no date"):
        again(tmp_path)
