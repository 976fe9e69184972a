"""A template's own objections: the row is set aside with its reason and number, and the run goes on."""

import json

import pytest
from template_helpers import stand_in
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.data.rows import Demonstration, Origin, Preference, Prompt
from llm_rlhf.evaluation.report.alarms import account_lines
from llm_rlhf.models.encoding import encode_prompt, encode_replies
from llm_rlhf.models.fitting import Fitted, fit_demonstrations, fit_preferences, fit_prompts
from llm_rlhf.models.rendering import RefusedByTemplateError

SYSTEM = {"role": "system", "content": "Be kind."}
ASK = {"role": "user", "content": "Where?"}
REPLY = {"role": "assistant", "content": "Here."}


@pytest.fixture
def gemma():
    """Knows no system turn, and wants user and assistant to take turns."""
    return stand_in("gemma")


def test_a_template_says_why_it_refuses(gemma) -> None:
    with pytest.raises(RefusedByTemplateError, match=r"^System role not supported$"):
        encode_prompt(gemma, [SYSTEM, ASK])
    with pytest.raises(RefusedByTemplateError, match=r"^Conversation roles must alternate"):
        encode_prompt(gemma, [ASK, {**ASK, "content": "typed <bos>"}])
    with pytest.raises(RefusedByTemplateError, match="System role"):
        encode_replies(gemma, [[ASK], [SYSTEM, ASK]], ["a", "b"])


def test_an_error_within_a_template_is_its_refusal(gemma) -> None:
    gemma.chat_template = "{{ messages[0].content + 1 }}"
    with pytest.raises(RefusedByTemplateError, match="str"):
        encode_prompt(gemma, [ASK])


@pytest.mark.parametrize("what", ["demonstrations", "pairs", "prompts"])
def test_refused_rows_are_set_aside_counted_and_written(gemma, tmp_path, capsys, what) -> None:
    origins = [Origin("rows.jsonl", i) for i in (1, 2, 3)]
    prompts = [[ASK], [SYSTEM, ASK], [SYSTEM, ASK]]
    account = Fitted(64, what)
    if what == "prompts":
        kept = fit_prompts(gemma, [Prompt(p, "helpful", o) for p, o in zip(prompts, origins, strict=True)], account)
    elif what == "pairs":
        pairs = [Preference(p, "a", "b", "helpful", o) for p, o in zip(prompts, origins, strict=True)]
        kept = fit_preferences(gemma, pairs, account)
    else:
        rows = [Demonstration([*p, REPLY], o) for p, o in zip(prompts, origins, strict=True)]
        kept = fit_demonstrations(gemma, rows, account)
    assert len(kept) == 1
    assert account.counts() == {
        "token_limit": 64, "kept": 1, "cut_at_turns": 0, "too_long": 0, "refused_by_template": 2
    }  # fmt: skip
    said = f"The chat template refuses 2 of them (the first: {origins[1]}): System role not supported."
    assert account.objection == f" {said}"
    account.write(tmp_path)
    assert f"{what}: {said} Set aside" in " ".join(capsys.readouterr().out.split())
    written = [json.loads(line) for line in (tmp_path / "refused_by_template.jsonl").read_text().splitlines()]
    assert written == [{"what": what, "origin": str(o), "reason": "System role not supported"} for o in origins[1:]]
    (line,) = account_lines({what: account.counts()})
    assert line == f"{what}: 2 of 3 rows are refused by the chat template; the others need not be like them."


def test_nothing_refused_is_not_spoken_of(gemma) -> None:
    account = Fitted(64, "prompts")
    fit_prompts(gemma, [Prompt([ASK], "helpful", Origin("rows.jsonl", 1))], account)
    assert account.objection == ""
    assert "refused_by_template" not in account.counts()


def test_data_check_and_show_tell_of_it(gemma, tmp_path) -> None:
    gemma.save_pretrained(tmp_path / "gemma")
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ([ASK], [SYSTEM, ASK])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [str(path), "--model", str(tmp_path / "gemma")]
    checked = CliRunner().invoke(app, ["data", "check", *asked, "--max-length", "64"])
    assert checked.exit_code == 0, checked.output
    told = " ".join(checked.output.split())
    assert f"The chat template refuses one of them (the first: {path}, row 2): System role not supported." in told
    shown = CliRunner().invoke(app, ["data", "show", *asked, "--rows", "1-2"])
    assert shown.exit_code == 0, shown.output
    assert "The chat template refuses this row, which a run sets aside: System role not supported" in shown.output
    path.write_text(json.dumps(rows[1]) + "\n")
    assert CliRunner().invoke(app, ["data", "check", *asked, "--max-length", "64"]).exit_code == 1  # a run would stop
