"""What a policy can be called on the command line."""

import json
from pathlib import Path

import pytest

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.subjects import folder_name, start_of, subject_of, trained_by
from llm_rlhf.recipe.sections import ModelSection


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "hh"
    for name in ("sft/model", "ppo/policy", "ppo/snapshots/step-4"):
        (folder / name).mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: hh\nmodel: {base: some/base, dtype: bfloat16}\n")
    return folder


def test_a_policy_is_compared_with_what_it_started_from(run) -> None:
    assert start_of(subject_of(str(run))).name == start_of(subject_of(f"{run}:step-4")).name == "sft"
    assert start_of(subject_of(f"{run}:sft")).base == "some/base"
    (run / "sft/model").rmdir()
    (run / "sft").rmdir()
    start = start_of(subject_of(str(run)))
    assert (start.name, start.base, start.adapter) == ("base", "some/base", None)


@pytest.mark.parametrize(
    ("policy", "reference", "name"),
    [
        ("{run}", None, "hh-ppo-sft"),
        ("{run}:step-4", "{run}:sft", "hh-step-4-sft"),
        ("{run}", "{run}/../other", "hh-ppo-other-ppo"),
        ("{run}", "released={run}/../other", "hh-ppo-released"),
        ("tuned={run}", None, "tuned-sft"),
        ("http://h/v1#m", "{run}", "m-hh-ppo"),
        ("http://h/v1#m", "org/Chat-1B", "m-Chat-1B"),
    ],
)
def test_the_folder_of_an_evaluation_tells_run_and_policy(run, policy, reference, name) -> None:
    other = run.parent / "other" / "ppo" / "policy"
    other.mkdir(parents=True)
    (other.parents[1] / "recipe.yaml").write_text("name: hh\nmodel: {base: some/base}\n")
    policy, reference = policy.format(run=run), reference and reference.format(run=run)
    judged = subject_of(policy)
    compared = subject_of(reference) if reference else start_of(judged)
    assert folder_name((policy, judged), (reference, compared)) == name


def test_what_made_a_policy_is_known_of_snapshots_too(run, tmp_path) -> None:
    made = [trained_by(subject_of(f"{run}{stage}")) for stage in ("", ":step-4", ":sft", ":base")]
    assert made == ["ppo", "ppo", "sft", None]
    (run / "ppo").rename(run / "rloo")
    assert trained_by(subject_of(f"tuned={run}:step-4")) == "rloo"
    assert trained_by(subject_of("http://h/v1#m")) is None


def test_a_run_is_its_last_policy_on_its_sft_model(run) -> None:
    subject = subject_of(str(run))
    assert (subject.name, subject.base, subject.adapter) == ("ppo", str(run / "sft/model"), run / "ppo/policy")
    assert subject.model.dtype == "bfloat16"
    assert subject.run == run


@pytest.mark.parametrize(
    ("stage", "base", "adapter"),
    [("sft", "sft/model", None), ("ppo", "sft/model", "ppo/policy"), ("step-4", "sft/model", "ppo/snapshots/step-4")],
)
def test_stages_and_snapshots(run, stage, base, adapter) -> None:
    subject = subject_of(f"{run}:{stage}")
    assert (subject.name, subject.base) == (stage, str(run / base))
    assert subject.adapter == (run / adapter if adapter else None)


def test_the_base_of_a_run_is_what_its_recipe_names(run) -> None:
    assert subject_of(f"{run}:base").base == "some/base"


def test_a_run_without_sft_stands_on_the_recipes_base(run) -> None:
    (run / "sft/model").rmdir()
    (run / "sft").rmdir()
    assert subject_of(str(run)).base == "some/base"
    with pytest.raises(RecipeError, match="has no 'sft'"):
        subject_of(f"{run}:sft")


def test_a_stage_that_is_not_there_is_told_with_the_nearest(run) -> None:
    with pytest.raises(RecipeError, match=r"has no 'step-5'.*step-4"):
        subject_of(f"{run}:step-5")


def test_an_adapter_stands_on_the_base_it_names(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    subject = subject_of(f"mine={tmp_path}", ModelSection(dtype="bfloat16"))
    assert (subject.name, subject.base, subject.adapter) == ("mine", "some/base", tmp_path)
    assert subject.model.dtype == "bfloat16"
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="does not say what its base is"):
        subject_of(str(tmp_path))


def test_hub_ids_and_endpoints(tmp_path) -> None:
    assert subject_of("Qwen/Qwen2.5-0.5B-Instruct").base == "Qwen/Qwen2.5-0.5B-Instruct"
    assert subject_of("Qwen/Qwen2.5-0.5B-Instruct").name == "Qwen2.5-0.5B-Instruct"
    endpoint = subject_of("judge-me=http://localhost:8000/v1#some/model")
    assert (endpoint.name, endpoint.url, endpoint.served) == ("judge-me", "http://localhost:8000/v1", "some/model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://localhost:8000/v1", "lacks the model's name"),
        ("./nowhere", "There is no policy at"),
    ],
)
def test_what_is_no_policy_is_refused(text, message) -> None:
    with pytest.raises(RecipeError, match=message):
        subject_of(text)


def test_a_folder_that_is_neither_is_refused(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe\.yaml"):
        subject_of(str(tmp_path))
