"""What a recipe asks for and cannot be: suites of the user's, and gates of the reward model's checks."""

import pytest

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.suites.own import TAKEN
from llm_rlhf.recipe.checks import check_own_suites, check_reward
from llm_rlhf.recipe.sections import OwnSuite, Recipe, Source


def suite(name: str = "brevity") -> OwnSuite:
    return OwnSuite(name, "m:f", [Source(source="mine.jsonl")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "my gain"}, "letters, digits and underscores"),
        ({"name": "my_gain"}, "not end in _gain"),
        ({"function": "m.f"}, "evaluate.own.0.function' is 'm.f'; write it as module:function"),
        ({"prompts": []}, "evaluate.own.0.prompts' is empty"),
        ({"prompts": [Source(from_="preferences")]}, "evaluate.own.0.prompts.0' must have a 'source'"),
        ({"prompts": [Source(source="a", weight=2.0)]}, "weights are for training"),
    ],
)
def test_wrong_suites_are_refused_by_key(changes, message) -> None:
    with pytest.raises(RecipeError, match=message):
        check_own_suites([OwnSuite(**{"name": "a", "function": "m:f", "prompts": [Source(source="x")]} | changes)])
    with pytest.raises(RecipeError, match=r"own.1.name' is 'brevity', as is another suite"):
        check_own_suites([suite(), suite()])


@pytest.mark.parametrize("name", ["reward", "kl", "refusals"])
def test_a_suite_may_not_be_called_as_a_measure_of_the_report(name) -> None:
    with pytest.raises(RecipeError, match=f"evaluate.own.0.name' is '{name}', as is a measure of the report's own"):
        check_own_suites([suite(name=name)], taken=TAKEN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.5}, "'reward.label_smoothing' is 0.5; .* under 0.5"),
        ({"label_smoothing_factor": 0.1}, "does nothing to a reward model; set 'reward.label_smoothing'"),
        ({"objectives": "separate", "ensemble": 2}, "an ensemble is of one objective, or joint"),
        ({"ensemble": 0}, "'reward.ensemble' is 0"),
        ({"gates": {"beat_rules": "stop"}}, "reward.gates.*beats_rules"),
        ({"gates": {"beats_rules": "stpo"}}, "'reward.gates.beats_rules' is 'stpo'; .*'stop'"),
        ({"gates": True}, "'reward.gates' is True; it must be one of"),
    ],
)
def test_what_a_reward_model_cannot_be_asked(options, message) -> None:
    check_reward(Recipe("made up", reward={"gates": False, "label_smoothing": 0.49}))
    with pytest.raises(RecipeError, match=message):
        check_reward(Recipe("made up", reward=options))
