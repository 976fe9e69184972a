"""The car in words: its physics, what is paid and what people like, and recipes that load."""

import json
import math
import random
from pathlib import Path

import pytest

from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def car(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.mountain_car import car

    return car


def test_one_step_is_the_mountain_cars(car, monkeypatch) -> None:
    """From -0.5 at rest, a push to the right: v = 0.001 - 0.0025 cos(-1.5), by hand."""
    monkeypatch.setattr(car, "HELD", 1)
    velocity = 0.001 - 0.0025 * math.cos(-1.5)
    assert velocity == pytest.approx(0.00082316, abs=1e-8)
    reached, highest, pushes = car.ride(-0.5, "right")
    assert (reached, pushes) == (False, 1)
    assert highest == pytest.approx(math.sin(3 * (-0.5 + velocity)))


def test_the_engine_is_too_weak_and_a_swing_is_not(car) -> None:
    assert not car.ride(-0.5, "right " * car.ACTIONS)[0]
    assert not car.ride(-0.5, "wait " * car.ACTIONS)[0]
    assert car.ride(-0.5, "left right right left left right right right") == (True, 1.0, 7)  # there before the last
    assert car.ride(-0.5, "left right right left left right right right " + "left " * 9)[
        0
    ]  # what is more is not driven


def test_rewards_and_verdicts_follow_the_ride(car) -> None:
    good, bad = "left right right left left right right right", "right " * car.ACTIONS
    prompts = [car.question(-0.5), car.question(-0.5)]
    paid = car.progress(prompts, [[{"role": "assistant", "content": text}] for text in (good, bad)])
    assert paid[0] == pytest.approx(2 - 0.02 * 7)
    assert paid[0] > paid[1]
    assert car.flag(prompts, [good, bad]) == [True, False]
    verdicts = [car.better(-0.5, (bad, good), random.Random(seed)) for seed in range(400)]
    assert sum(verdicts) / 400 == pytest.approx(0.9, abs=0.06)  # wrong one time in ten; four standard deviations


def test_training_never_asks_what_evaluation_asks(car, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(car, "make_tiny_base", lambda *a, **k: None)
    car.make(tmp_path, pairs=200, prompts=400)
    asked = {json.loads(line)["prompt"][0]["content"] for line in (tmp_path / "evaluation_prompts.jsonl").open()}
    trained = {json.loads(line)["prompt"][0]["content"] for name in ("prompts", "comparisons")
               for line in (tmp_path / f"{name}.jsonl").open()}  # fmt: skip
    assert len(asked) == 100
    assert not asked & trained


@pytest.mark.parametrize("name", ["reward", "people"])
def test_its_recipes_load(car, name, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(ROOT / "examples" / "mountain_car" / f"{name}.yaml")
    assert recipe.evaluate is not None
    assert recipe.evaluate.own[0].function == "examples.mountain_car.car:flag"


@pytest.mark.slow
def test_half_the_budget_teaches_it_to_swing(car, tmp_path, monkeypatch) -> None:
    """With this budget seeds 1 and 2 gained 39 points [27, 50] and 37 [25, 47]; one that learns nothing gains 0."""
    monkeypatch.chdir(tmp_path)
    car.make(Path("runs/mountain-car"), pairs=0)
    run = run_recipe(load_recipe(ROOT / "examples/mountain_car/reward.yaml", ["ppo.total_episodes=2560"]))
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    (gain,) = (entry for entry in report["estimates"] if entry["name"] == "flag_gain")
    assert gain["n"] == 100
    assert gain["low"] > 0.1
