"""JSON lines whose texts hold what Python takes for the end of a line: every reader reads as many rows as there are."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import llm_rlhf
from llm_rlhf.checkpoints import forget_after
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation import against
from llm_rlhf.evaluation.answers import Answers, write_replies
from llm_rlhf.evaluation.judges.people import StoredJudge
from llm_rlhf.evaluation.report import comparison
from llm_rlhf.evaluation.suites.refusals import FILES, shipped_prompts
from llm_rlhf.export.source import Source
from llm_rlhf.json_lines import DEEPEST, lines_of, parse_json, read_json_lines
from llm_rlhf.methods.best_of_n import read_picked
from llm_rlhf.models.inference import ReplyCache
from llm_rlhf.ppo.snapshots import Snapshots
from llm_rlhf.ppo.watch import Watch
from llm_rlhf.training import read_metrics

# What str.splitlines cuts at: in JSON only the last three may stand unescaped, and they do where ensure_ascii is False.
ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
SAID = f"one{ENDS}two\r\nthree\nfour"

# Modules that cut other things than JSON lines, and how often.
OTHERS = {
    "cli/completion.py": 1,  # what a shell is offered
    "doctor/examine.py": 1,  # the first line of an error's text
    "doctor/machine.py": 1,
    "doctor/outside.py": 3,
    "doctor/packages.py": 1,
    "evaluation/judges/prompts.py": 1,  # the last line that a judge said
    "errors.py": 1,
    "provenance.py": 1,  # /proc/cpuinfo
}


def test_no_module_but_those_listed_cuts_text_by_splitlines() -> None:
    package = Path(llm_rlhf.__file__).parent
    found = {}
    for path in sorted(package.rglob("*.py")):
        names = [node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)]
        if times := names.count("splitlines"):
            found[path.relative_to(package).as_posix()] = times
    more = {name: times for name, times in found.items() if times > OTHERS.get(name, 0)}
    assert not more, f"{more}: JSON lines are read by llm_rlhf.json_lines; list here what cuts anything else"


def written(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    return path


ROWS = [{"step": step, "text": SAID} for step in (0, 4, 8)]


def of_metrics(folder: Path) -> Any:
    return read_metrics(written(folder / "metrics.jsonl", ROWS).parent)


def of_picked(folder: Path) -> Any:
    return read_picked(written(folder / "picked.jsonl", ROWS))


def of_snapshots(folder: Path) -> Any:
    written(folder / "snapshots.jsonl", ROWS)
    return Snapshots(folder, lambda to: None).rows()


def of_watch(folder: Path) -> Any:
    written(folder / "watch.jsonl", ROWS)
    watch = Watch(folder, 0.05)
    watch.begin()
    return watch.lines


def of_compare(folder: Path) -> Any:
    written(folder / "evaluate" / "replies.jsonl", ROWS)
    return comparison._replies(folder)


def of_gate(folder: Path) -> Any:
    written(folder / "evaluate" / "replies.jsonl", ROWS)
    return against._rows(folder, "replies.jsonl")


@pytest.mark.parametrize("read", [of_metrics, of_picked, of_snapshots, of_watch, of_compare, of_gate])
def test_a_text_with_ends_of_lines_in_it_is_one_row(read: Callable[[Path], Any], tmp_path: Path) -> None:
    assert read(tmp_path) == ROWS


def test_replies_that_were_written_are_compared_and_exported_as_they_are(tmp_path: Path) -> None:
    prompts: Any = [
        SimpleNamespace(messages=[{"role": "user", "content": f"{SAID}{i}"}], objective="helpful", origin=i, facts={})
        for i in range(2)
    ]
    path = tmp_path / "evaluate" / "replies.jsonl"
    path.parent.mkdir()
    write_replies(path, prompts, {"ppo": Answers([SAID, "x"], [3, 1], [True, True])})
    assert [row["ppo"]["reply"] for row in comparison._replies(tmp_path)] == [SAID, "x"]
    (tmp_path / "ppo").mkdir()
    policy: Any = SimpleNamespace(run=tmp_path, adapter=tmp_path / "ppo" / "policy")
    source = Source("run:ppo", policy, base="x", adapters=[])
    assert [(row["prompt"], row["reply"]) for row in source.replies] == [
        (prompts[0].messages, SAID),
        (prompts[1].messages, "x"),
    ]


def test_a_resumed_run_keeps_lines_with_ends_of_lines_in_them_and_drops_half_a_character(tmp_path: Path) -> None:
    log = written(tmp_path / "samples.jsonl", ROWS)
    whole = log.read_bytes()
    log.write_bytes(whole + '{"step": 4, "text": "é'.encode()[:-1])  # killed within the two bytes of a letter
    forget_after(log, 4)
    assert log.read_bytes() == b"".join(line + b"\n" for line in whole.split(b"\n")[:2])


def test_a_resumed_run_leaves_out_lines_that_are_no_step_of_a_log(tmp_path: Path, capsys) -> None:
    log = written(tmp_path / "metrics.jsonl", ROWS)
    whole = log.read_bytes()
    log.write_bytes(b'3\n{}\nnull\n{"step": "x"}\n' + whole)
    forget_after(log, 4)
    assert log.read_bytes() == b"".join(line + b"\n" for line in whole.split(b"\n")[:2])
    assert "that are no JSON of a step are left out: [1, 2, 3, 4]" in capsys.readouterr().out


def test_replies_kept_for_an_evaluation_are_found_again(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.jsonl", {"of": SAID})
    cache.add([([1, 2], 0)], [[3]])
    with cache.path.open("ab") as file:
        file.write('\n{"key": "é'.encode()[:-1])
    assert ReplyCache(tmp_path / "replies.jsonl", {"of": SAID}).known_of([([1, 2], 0)]) == {0: [3]}


def test_verdicts_of_people_may_hold_any_text(tmp_path: Path) -> None:
    row = {"prompt": SAID, "a": "x", "b": f"y{ENDS}", "winner": "a", "annotator": "A"}
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n")
    assert StoredJudge(path).identity()["people"] == 1


def test_prompts_of_the_refusals_suite_may_hold_any_text(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": SAID}], "objective": "helpful", "category": "none"}
    for name in FILES:
        written(tmp_path / name, [row])
    assert [prompt.messages[0]["content"] for prompt in shipped_prompts(5, tmp_path)] == [SAID] * len(FILES)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    for damage in (b'{"a": ', b'{"a": "\xff"}', b"[" * 100_000, b"1" * 5000):
        path.write_bytes(b'{"a": 1}\n\n' + damage + b"\n")
        with pytest.raises(DataError, match=r"replies\.jsonl, line 3 is no JSON") as error:
            read_json_lines(path)
        assert len(str(error.value)) < 600


def test_lines_are_numbered_as_an_editor_does() -> None:
    assert list(lines_of("a\n \r\nb\u2028c".encode())) == [(1, b"a"), (3, "b\u2028c".encode())]


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_json_that_nests_without_end_is_refused(opening: str) -> None:
    levels = len(opening.replace('"a":', ""))
    closing = "".join({"[": "]", "{": "}"}.get(sign, "") for sign in reversed(opening))

    def nested(times: int) -> str:
        return opening * times + "1" + closing * times

    assert parse_json(nested(DEEPEST // levels)) is not None
    for times in (DEEPEST // levels + 1, 990 // levels, 5000, 200_000):
        with pytest.raises(ValueError, match="nested deeper than 200"):
            parse_json(nested(times))
    assert len(parse_json("[" + "[],{}," * 500 + "1]")) == 1001  # wide is not deep
