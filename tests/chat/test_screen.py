"""What of a chat reaches the terminal: text, whatever a model says; the same words in every width."""

import io
import json
import re
import unicodedata

import pytest
from rich.console import Console

from llm_rlhf.chat.printable import printable
from llm_rlhf.chat.screen import Json, Lines, Terminal
from llm_rlhf.chat.voices import Heard

ASKED = [{"role": "user", "content": "why?"}]
NASTY = "\x1b]0;owned\x07\x1b[2J[bold red]x[/] \x9b31m \u202eabc \x00\r end :smile:\x7f"


def heard(text: str, thought: str = "", **known: object) -> Heard:
    return Heard(
        **{"prompt": ASKED, "text": text, "thought": thought, "stopped": True, "tokens": 3, "seconds": 0.1} | known
    )


def terminal(width: int, height: int = 20) -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height, color_system="standard",
                      markup=False, highlight=False, emoji=False)  # fmt: skip
    return Terminal(console), out


def shown(out: io.StringIO) -> str:
    """What was written, without the codes of rich's own."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())


def test_no_control_character_is_printable() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = {char for char in printable(everything) if unicodedata.category(char) in ("Cc", "Cs")}
    assert left == {"\n", "\t"}
    assert printable("a\r\nb\x1b[31m\x7f") == "a\nb␛[31m␡"
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") & set(printable(everything))


@pytest.mark.parametrize("width", [60, 140])
@pytest.mark.parametrize("sides", [["one"], ["start", "policy"]])
def test_escapes_and_markup_in_a_reply_are_text(width, sides) -> None:
    screen, out = terminal(width)
    with screen.board("why?", sides) as board:
        for side in sides:
            board.tell(side, NASTY, "")
            board.tell(side, NASTY, NASTY)
            board.answered(side, heard(NASTY, NASTY), {"reward": 1.0})
    screen.say(NASTY)
    told = shown(out)
    assert "\x1b" not in told.replace("\x1b[", ""), "only rich's own sequences"
    for alien in ("\x1b]", "\x1b[2J[", "\x07", "\x9b", "\u202e", "\x00", "\x7f"):
        assert alien not in out.getvalue(), repr(alien)
    assert "␛]0;owned␇␛[2J[bold red]x[/]" in re.sub(r"\s*\n\s*", "", told) or width == 140
    assert "[bold red]" in told
    assert ":smile:" in told


def test_a_reply_is_written_once_as_it_grows() -> None:
    screen, out = terminal(60)
    with screen.board("why?", ["one"]) as board:
        for text in ("", "Be", "Because", "Because it", "Because it is."):
            board.tell("one", "", text)
        board.answered("one", heard("Because it is."), {"reward": 0.5, "heldout": -0.25})
    assert shown(out).split("\n")[:2] == ["Because it is.", "reward +0.50, held-out -0.25, 3 tokens"]


@pytest.mark.parametrize("width", [10, 33, 60])
def test_lines_break_between_words(width) -> None:
    words = [f"{'w' * (i % 9)}{i}" for i in range(60)]
    screen, out = terminal(width)
    with screen.board("why?", ["one"]) as board:
        for end in range(0, len(" ".join(words)), 3):
            board.tell("one", "", " ".join(words)[:end])
        board.answered("one", heard(" ".join(words)), {})
    lines = shown(out).split("3 tokens")[0].rstrip("\n").split("\n")
    assert [word for line in lines for word in line.split()] == words
    assert max(len(line) for line in lines) <= width
    following = [line.split()[0] for line in lines[1:]]
    assert all(len(line.rstrip()) + 1 + len(word) > width for line, word in zip(lines, following, strict=False)), "full"


def test_a_word_longer_than_a_line_and_lines_of_its_own() -> None:
    screen, out = terminal(20)
    with screen.board("why?", ["one"]) as board:
        board.answered("one", heard("a\n\n" + "x" * 50 + "\n- b\tc"), {})
    assert shown(out).startswith("a\n\n" + "x" * 50 + "\n- b")


def test_what_turns_out_otherwise_is_written_anew() -> None:
    screen, out = terminal(60)
    with screen.board("why?", ["one"]) as board:
        board.tell("one", "", "hmm, what")
        board.tell("one", "hmm, what is it", "")
        board.answered("one", heard("It is.", "hmm, what is it"), {})
    assert shown(out).startswith("hmm, what\nhmm, what is it\n\nIt is.\n")


@pytest.mark.parametrize(("width", "beside"), [(60, False), (140, True)])
def test_two_sides_stand_beside_each_other_where_there_is_room(width, beside) -> None:
    screen, out = terminal(width, height=10)
    with screen.board("why?", ["start", "policy"]) as board:
        board.tell("start", "", "first words again")
        assert "first words" in shown(out), "at once"
        board.answered("start", heard("first words " + "again " * 60), {})
        board.answered("policy", heard("second"), {})
    lines = shown(out).split("\n")
    assert any("first words" in line and "second" in line for line in lines) == beside
    whole = shown(out)[shown(out).rindex("start") :]
    assert whole.count("again") == 60, "whole at the end"


def test_what_is_known_of_an_answer(capsys) -> None:
    lines = Lines()
    with lines.board("why?", ["a", "b"]) as board:
        board.answered("a", heard("yes"), {})
        board.answered("b", heard("no", stopped=False, cut=2), {"reward": -1.0})
        board.answered("a", heard("", "well", stopped=False), {})
    assert capsys.readouterr().out.splitlines() == [
        "a: yes",
        "b: no",
        "(reward -1.00, 3 tokens, cut off at response_length, the oldest 2 turns did not fit)",
        "a: ",
        "(3 tokens, cut off at response_length, a thought that does not end)",
    ]


def test_json_is_a_line_for_each_answer(capsys) -> None:
    screen = Json()
    for _ in range(2):
        with screen.board("why?", ["a"]) as board:
            board.answered("a", heard(NASTY + "\ud800é"), {"reward": 0.25})
    out = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", out)
    assert "é" in out
    first, second = map(json.loads, out.splitlines())
    assert first["reply"] == NASTY + "\ud800é"
    assert {name: second[name] for name in ("turn", "side", "prompt", "reward", "heldout", "stopped")} == {
        "turn": 2, "side": "a", "prompt": "why?", "reward": 0.25, "heldout": None, "stopped": True,
    }  # fmt: skip
