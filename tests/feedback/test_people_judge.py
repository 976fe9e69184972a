"""`people:STORE`: a store, a run that has one and a run that has collected labels, as a judge."""

import shutil
from pathlib import Path

import pytest
from feedback_helpers import asked, better, says, somebody
from sqlalchemy import select

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.judges import Pair, StoredJudge
from llm_rlhf.evaluation.judges.naming import check_judge, judge_of
from llm_rlhf.feedback.database import STORE, Database
from llm_rlhf.feedback.judging import check_store_of, store_of, with_verdicts
from llm_rlhf.feedback.snapshot import look_at
from llm_rlhf.feedback.tables import Export
from llm_rlhf.recipe.sections import EvaluateSection, ModelSection


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a store in it; two people prefer 13, one 15."""
    database = Database.of(tmp_path / STORE)
    item = asked(database, "compare", "Name a prime.", ["13", "15"])
    for place in (0, 0, 1):
        says(database, somebody(database), item, better(place))
    database.close()
    return tmp_path


def share(judge: str | None) -> float | None:
    assert judge is not None
    found = judge_of(judge, ModelSection(), Path("unused"))
    assert isinstance(found, StoredJudge)
    (reading,) = found.read_pairs([Pair([{"role": "user", "content": "Name a prime."}], "15", "13")], None, 0)
    return reading.value


def test_a_store_and_a_run_that_has_one(run: Path, tmp_path: Path) -> None:
    for named in (run, run / STORE):
        judge = f"people:{named}"
        check_judge(judge)
        check_store_of(judge)
        assert share(with_verdicts(judge, tmp_path / "to", "evaluations/mine")) == pytest.approx(1 / 3)
    database = Database.of(run)
    with database.read() as session:
        assert {export.details["made_for"] for export in session.scalars(select(Export))} == {"evaluations/mine"}


def test_a_run_that_has_collected_labels_and_has_no_store(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "collect").mkdir(parents=True)
    look_at(run, other / "collect")
    judge = with_verdicts(f"people:{other}", tmp_path / "to", "x")
    assert judge == f"people:{other / 'collect' / 'verdicts.jsonl'}"
    assert not (tmp_path / "to").exists()
    assert share(judge) == pytest.approx(1 / 3)


def test_files_of_verdicts_and_other_judges_are_left_as_they_are(run: Path, tmp_path: Path) -> None:
    look_at(run, tmp_path)
    file = shutil.copy(tmp_path / "verdicts.jsonl", tmp_path / "said.jsonl")
    for judge in (f"people:{file}", "local:some/model", "http://localhost/v1#model", None):
        assert store_of(judge) is None
        assert with_verdicts(judge, tmp_path / "to", "x") == judge
    assert EvaluateSection(judge=f"people:{file}").local_files() == [str(file)]
    assert EvaluateSection(judge=f"people:{run}").local_files() == []  # its labels are told by those it wrote
    assert EvaluateSection(judge=f"people:{run / STORE}").local_files() == []


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not there, nor is it a store"):
        check_judge(f"people:{tmp_path / 'nothing'}")
    with pytest.raises(RecipeError, match=r"is no run's folder"):
        check_store_of(f"people:{tmp_path}")
    Database.of(tmp_path / "empty.db").close()
    with pytest.raises(DataError, match="is empty"):
        check_store_of(f"people:{tmp_path / 'empty.db'}")
    with pytest.raises(RecipeError, match="is a store; write its verdicts first"):
        judge_of(f"people:{tmp_path / 'empty.db'}", ModelSection(), tmp_path)
