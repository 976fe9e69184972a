"""`llm-rlhf chat` as its user runs it, from a pipe, on tiny random models and a scripted server."""

import json
import re
from pathlib import Path

import pytest
from endpoint_stand_in import Raw, StandIn, failed, reply
from model_helpers import random_policy_adapter
from typer.testing import CliRunner

from llm_rlhf.cli.main import app

LENGTH = ["--response-length", "8"]


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory, base_folder) -> Path:
    return random_policy_adapter(base_folder, tmp_path_factory.mktemp("policy"), seed=5, r=4)


def chat(*arguments: object, typed: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["chat", *map(str, arguments)], input=typed)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout, result.stderr


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
def test_two_sides_from_a_pipe_are_the_same_with_the_same_seed(base_folder, policy_folder, reward_folder) -> None:
    asked = [f"start={base_folder}", f"tuned={policy_folder}", "--reward", reward_folder, *LENGTH, "--json"]
    out, _ = chat(*asked, "--seed", "4", typed="why?\nand then?\n")
    found = rows(out)
    assert [(row["turn"], row["side"], row["prompt"]) for row in found] == [
        (1, "start", "why?"), (1, "tuned", "why?"), (2, "start", "and then?"), (2, "tuned", "and then?")
    ]  # fmt: skip
    assert all(isinstance(row["reward"], float) for row in found if row["reply"].strip())
    assert found[0]["reply"] != found[1]["reply"]
    assert chat(*asked, "--seed", "4", typed="why?\nand then?\n")[0] == out
    assert chat(*asked, "--seed", "5", typed="why?\nand then?\n")[0] != out


@pytest.mark.slow
def test_a_mistake_is_told_and_ends_with_code_1(policy_folder) -> None:
    out, err = chat(policy_folder, *LENGTH, typed=f"{'x' * 400}\n/bogus\nwhy?\n", code=1)
    assert err.count("error: ") == 2
    assert "That is too long for" in err
    assert "There is no command /bogus." in err
    assert out.strip()


@pytest.mark.slow
def test_an_endpoint_beside_a_model(base_folder, reward_folder) -> None:
    def script(body: dict, number: int) -> Raw:
        return failed(503, "busy") if body["messages"][-1]["content"] == "fail" else reply("said \x1b[2J remotely")

    server = StandIn(script)
    try:
        asked = [f"{server.url}#far", f"near={base_folder}", "--reward", reward_folder, *LENGTH]
        out, err = chat(*asked, "--top-p", "0.5", "--system", "Be kind.", typed="hi\nfail\nmore\n", code=1)
    finally:
        server.close()
    assert "far: said ␛[2J remotely\n(reward " in out
    assert "HTTP 503: busy" in err
    first, failing, last = server.bodies
    assert first["top_p"] == 0.5
    assert "top_k" not in first
    assert first["stream"] is True
    assert [turn["role"] for turn in last["messages"]] == ["system", "user", "assistant", "user"]
    assert failing["messages"][:3] == last["messages"][:3], "the question that failed is forgotten"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["./nowhere"], "There is no policy at"),
        (["no/such-model"], "is no folder here and not in the hub's cache"),
        (["a", "--only", "both"], "--only is 'both'; it is policy or start"),
        (["a", "--no-reward", "--reward", "b"], "--no-reward loads no reward model, and one is named"),
        (["a", "--temperature", "-1"], "temperature is -1.0; it must be 0 or more"),
        (["a", "b", "c"], "two sides at most"),
        (["http://localhost:1/v1"], "lacks the model's name"),
        (["http://localhost:1/v1#m", "--key-variable", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["a", "--dtype", "float8"], "must be one of 'auto', 'float32', 'bfloat16'"),
    ],
)
def test_wrong_requests_are_told_before_anything_is_loaded(arguments, told) -> None:
    _, err = chat(*arguments, typed="hi\n", code=2)
    assert told in re.sub(r"\s+", " ", err)
