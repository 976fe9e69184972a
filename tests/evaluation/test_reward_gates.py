"""What becomes of the reward stage's checks: told, kept, and a reason to stop before PPO."""

import json
import re

import pytest
import yaml

from llm_rlhf.errors import RunError
from llm_rlhf.evaluation.reward_checks import Check
from llm_rlhf.evaluation.reward_gates import WARNINGS, read_checks, report_lines, stop_at_gates, tell
from llm_rlhf.recipe.sections import REWARD_CHECKS, Recipe
from llm_rlhf.run_folder import RunFolder

CHECKS = [
    Check("sees_past_length", "reward", "all", "passed", "It sees past length.", {"estimate": 0.1}),
    Check("leaves_plateau", "reward", "all", "note", "It hardly learnt."),
    Check("beats_rules", "reward", "helpful", "warning", "It is worse than a coin."),
    Check("prefers_refusals", "reward", "harmless", "not measured", "Nobody refused."),
]


@pytest.fixture
def run(tmp_path) -> RunFolder:
    (tmp_path / "reward").mkdir()
    return RunFolder(tmp_path)


def asking(gates: object) -> Recipe:
    return Recipe("made up", reward={"gates": gates})


@pytest.mark.parametrize(("method", "called"), [("grpo", "GRPO"), ("best_of_n", "Best of n, imitated"), ("ppo", "PPO")])
def test_what_was_not_started_is_called_by_its_name(run, method: str, called: str) -> None:
    recipe = Recipe("made up", reward={"gates": "stop"}, **{method: {}})  # type: ignore[arg-type]
    with pytest.raises(RunError, match=f"^{called} was not started"):
        stop_at_gates(recipe, run)


def test_every_check_is_kept_and_those_not_passed_are_told_the_gravest_first(run, capsys) -> None:
    tell(asking({"leaves_plateau": False}), CHECKS, run / "reward")
    assert capsys.readouterr().out.splitlines() == [
        "      warning: It is worse than a coin.",
        "      not measured: Nobody refused.",
        "      1 of 3 checks of the reward model passed (warnings.json)",  # one is off
    ]
    assert len(json.loads((run / "reward" / WARNINGS).read_text())["checks"]) == 4
    known = read_checks(run)
    assert [check.level for check in known] == ["warning", "note", "not measured", "passed"]
    assert known[-1] == CHECKS[0]


@pytest.mark.parametrize(
    ("gates", "stops"),
    [
        ("warn", False), (False, False), ("stop", True), ({"beats_rules": "stop"}, True),
        ({"leaves_plateau": "stop"}, False),  # a note is no fault
        ({"beats_rules": "warn", "sees_past_length": "stop"}, False),
    ],
)  # fmt: skip
def test_a_fault_stops_where_its_gate_says_so(run, gates, stops: bool) -> None:
    tell(asking("warn"), CHECKS, run / "reward")
    if not stops:
        stop_at_gates(asking(gates), run)
        return
    with pytest.raises(RunError, match=r"failed 1 of its checks.\n  beats_rules: It is worse than a coin.\n"):
        stop_at_gates(asking(gates), run)


def test_the_advice_lets_one_check_pass_and_no_other(run) -> None:
    tell(asking("warn"), CHECKS, run / "reward")
    with pytest.raises(RunError, match=r"reward.gates.beats_rules=warn for one check"):
        stop_at_gates(asking({"beats_rules": "stop"}), run)
    with pytest.raises(RunError) as stopped:
        stop_at_gates(asking("stop"), run)
    (advice,) = re.findall(r"'reward.gates=(\{.*?\})' for one check", str(stopped.value))
    assert yaml.safe_load(advice) == {name: "warn" if name == "beats_rules" else "stop" for name in REWARD_CHECKS}
    stop_at_gates(asking(yaml.safe_load(advice)), run)


def test_a_stage_that_checked_nothing_is_no_pass(run) -> None:
    assert read_checks(run) is None
    stop_at_gates(asking("warn"), run)
    with pytest.raises(RunError, match="was made by a version that checked nothing"):
        stop_at_gates(asking("stop"), run)
    assert report_lines(asking("warn"), run, ["an alarm"]) == ["an alarm"]


def test_the_report_says_faults_first_merits_last_and_nothing_twice(run) -> None:
    tell(asking("warn"), CHECKS, run / "reward")
    alarms = ["an alarm", "It hardly learnt.", "It is worse than a coin."]
    assert report_lines(asking("warn"), run, alarms) == ["It is worse than a coin.", "an alarm", "It hardly learnt."]
    assert report_lines(asking({"beats_rules": False}), run, alarms) == ["an alarm", "It hardly learnt."]
