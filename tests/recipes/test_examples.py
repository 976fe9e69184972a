"""Every script of examples/ runs, offline, on tiny models."""

import ast
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from endpoint_stand_in import StandIn, letters, reply

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.evaluation.suites.own import check_suites, score_replies, suite_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LONGEST = 40  # lines


@pytest.fixture
def run(monkeypatch, capsys):
    def running(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return running


def test_every_example_is_short_says_what_it_is_and_is_run_here() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST, path.name
        assert ast.get_docstring(ast.parse(text)), path.name
        assert path.stem in tested.split("LONGEST")[-1], path.name


@pytest.mark.slow
def test_ppo_python_reward(run, base_folder, tmp_path) -> None:
    run("ppo_python_reward.py", base_folder, tmp_path, 64)
    assert (tmp_path / "policy" / "adapter_model.safetensors").is_file()


def test_score_conversations(run, reward_folder) -> None:
    scores = [float(line.split()[0]) for line in run("score_conversations.py", reward_folder).splitlines()]
    assert len(scores) == 3
    assert scores[0] >= scores[1]  # the better reply comes first


def test_own_suite(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    told = (EXAMPLES / "own_suite.py").read_text(encoding="utf-8")
    suite = suite_of(re.findall(r"--own (\S+)", told)[0])
    assert (suite.name, suite.good) == ("lists", "neither")
    check_suites([suite])  # its prompts are there, and its function is found
    asked = ["How are you?", "Give me a list.", "How do I boil an egg?"]
    prompts = [
        Prompt([{"role": "user", "content": text}], "helpful", Origin("x", i)) for i, text in enumerate(asked, 1)
    ]
    points = "Like this:\n- water\n- egg\n- eight minutes"
    assert score_replies(suite, prompts, ["Well.", points, points]) == [0.0, None, 1.0]


def test_endpoint_judge(run) -> None:
    def prefers_numbers(body: dict[str, Any], count: int) -> Any:
        """A judge that knows the better replies wherever they stand."""
        shown = body["messages"][-1]["content"]
        first = min((shown.find(text), better) for text, better in KNOWN.items() if text in shown)[1]
        probability = 0.9 if first else 0.1
        return reply("A" if first else "B", logprobs=letters({"A": probability, "B": 1 - probability}))

    server = StandIn(prefers_numbers)
    try:
        lines = run("endpoint_judge.py", server.url, "judge").splitlines()
    finally:
        server.close()
    assert [float(line.split()[0]) for line in lines[:2]] == pytest.approx([0.9, 0.1])
    assert len(server.bodies) == 4  # two pairs in both orders


KNOWN = {
    "Eight minutes in boiling water.": True,
    "No idea.": False,
    "Seven to nine minutes, then cold water.": True,
    "Some water, some time.": False,
}


def test_win_rate_metric(run) -> None:
    told = dict(line.split(": ", 1) for line in run("win_rate_metric.py").splitlines())
    assert float(told["win_rate"]) == pytest.approx(4.5 / 6)  # four won, one tie, one lost
    assert told["win_rate_n"] == "3"  # prompts
