"""Scores by the moments of their own objective: numbers worked by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from llm_rlhf import PPOConfig
from llm_rlhf.ppo.preparation import objectives_of
from llm_rlhf.ppo.scores import ScoreMoments

SCORES = torch.tensor([1.0, 3.0, 10.0, 30.0])  # helpful ones of mean 2, harmless ones of mean 20
SIDES = ["helpful", "helpful", "harmless", "harmless"]


def alone(value: torch.Tensor) -> torch.Tensor:
    """The sum over one process."""
    return value


def seen(*objectives: str) -> ScoreMoments:
    moments = ScoreMoments(objectives or ("all",))
    moments.update(SCORES, SIDES, alone)
    return moments


def test_each_objective_is_whitened_by_its_own_mean_and_deviation() -> None:
    """Deviations divide by n - 1: those of (1, 3) and (10, 30) are sqrt(2) and sqrt(200)."""
    found = seen("helpful", "harmless").normalised(SCORES, SIDES, "whiten")
    half = 0.5**0.5
    assert found.tolist() == pytest.approx([-half, half, -half, half])


def test_scaling_by_objective_leaves_the_means() -> None:
    found = seen("helpful", "harmless").normalised(SCORES, SIDES, "scale")
    assert found.tolist() == pytest.approx([1 / 2**0.5, 3 / 2**0.5, 10 / 200**0.5, 30 / 200**0.5])


def test_together_objectives_do_not_matter() -> None:
    found, other = (seen().normalised(SCORES, sides, "whiten") for sides in (SIDES, ["overall"] * 4))
    assert found.tolist() == other.tolist()
    assert found.mean().item() == pytest.approx(0, abs=1e-6)  # float32 of numbers near 1


def test_moments_go_on_from_rollout_to_rollout_and_through_a_checkpoint() -> None:
    moments = ScoreMoments(("helpful", "harmless"))
    assert not moments.known
    moments.update(SCORES[:2], SIDES[:2], alone)  # a rollout without harmless prompts
    again = ScoreMoments(("helpful", "harmless"))
    again.load_state_dict(moments.state_dict())
    again.update(SCORES[2:], SIDES[2:], alone)
    assert again.normalised(SCORES, SIDES, "whiten").tolist() == (
        seen("helpful", "harmless").normalised(SCORES, SIDES, "whiten").tolist()
    )


def test_what_was_not_seen_stays_and_one_value_has_no_deviation() -> None:
    moments = ScoreMoments(("helpful", "harmless"))
    assert moments.normalised(SCORES, SIDES, "scale").tolist() == SCORES.tolist()
    moments.update(SCORES[:1], SIDES[:1], alone)
    assert moments.normalised(SCORES, SIDES, "scale").tolist() == SCORES.tolist()
    assert moments.normalised(SCORES, SIDES, "whiten").tolist() == [0.0, 2.0, 10.0, 30.0]


def test_prompts_must_say_their_objective_where_it_counts() -> None:
    rows: dict[str, Any] = {"prompt": ["a", "b", "c"]}
    assert objectives_of(Dataset.from_dict(rows), "all") == ["all"]
    with pytest.raises(ValueError, match="no column `objective`"):
        objectives_of(Dataset.from_dict(rows), "objective")
    named = Dataset.from_dict({**rows, "objective": ["helpful", None, "helpful"]})
    assert objectives_of(named, "objective") == ["helpful", "overall"]
    assert objectives_of(SimpleNamespace(column_names=None), "all") == ["all"]  # a stream


def test_by_objective_needs_something_to_be_done_by_it(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="score_normalization_by is set"):
        PPOConfig(output_dir=str(tmp_path), bf16=False, score_normalization_by="objective")


def test_one_objective_is_normalised_before_the_other_has_been_seen() -> None:
    moments = ScoreMoments(("helpful", "harmless"))
    assert not moments.known
    moments.update(SCORES[:2], SIDES[:2], alone)
    assert moments.known
    half = 0.5**0.5
    assert moments.normalised(SCORES, SIDES, "whiten").tolist() == pytest.approx([-half, half, 10, 30])
