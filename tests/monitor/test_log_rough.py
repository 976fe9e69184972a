"""Lines of a log that break nothing but themselves."""

import json
from pathlib import Path

import pytest

from llm_rlhf.monitor.log import read_log


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"messages": "said \ud83d"}, "text with a NUL or half a character"),
        ({"messages": "said \x00"}, "text with a NUL or half a character"),
        ({"created": "0001-01-01T00:00:00+14:00"}, "time that cannot be read"),
        ({"created": 10**400}, "time that cannot be read"),
        ({"created": "9" * 5_000}, "time that cannot be read"),
    ],
)
def test_an_odd_line_is_left_out_with_its_reason(tmp_path: Path, wrong: dict, reason: str) -> None:
    def line(said: str, created: object) -> str:
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": said}]
        return json.dumps({"messages": turns, "created": created}) + "\n"

    odd = {"messages": "said", "created": 1_700_000_000} | wrong
    log = tmp_path / "log.jsonl"
    log.write_text(line(odd["messages"], odd["created"]) + line("fine", 1_700_000_000))
    found = read_log(log)
    assert [reply.text for reply in found.replies] == ["fine"]
    assert found.left_out == {reason: 1}
