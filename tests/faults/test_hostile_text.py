"""Text made to keep regular expressions busy: every pattern of the package takes time in proportion to its length."""

import importlib
import pkgutil
import re
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

import llm_rlhf
from llm_rlhf.audit.personal import suspicions
from llm_rlhf.evaluation.chat_wire import _begun_by_prompt
from llm_rlhf.evaluation.refusal_detector import detect
from llm_rlhf.evaluation.refusal_patterns import LIST_ITEM
from llm_rlhf.evaluation.suites.benchmarks.loading import benchmark_of
from llm_rlhf.evaluation.suites.reward_accuracy import opens_with_refusal
from llm_rlhf.models.thoughts import WRITTEN

# What patterns begin with, and what fits into their repetitions.
OPENINGS = ("", "i", '"', "a=")
REPEATED = (
    *(
        " ",
        "\n",
        "\t",
        "\u2028",
        "a",
        "a ",
        "a.",
        "a@",
        "a@a.",
        ". ",
        "1",
        "1.",
        "1-",
        "1 ",
        "1.1.1.1 ",
        "+1 234 567 89 ",
    ),
    *(
        "(((",
        "[a",
        "<a",
        '"',
        '"a',
        "`",
        "*",
        "*a",
        "- ",
        "-\n",
        "1) ",
        "_",
        ":",
        "a:",
        "a=,",
        ",a=",
        "i ",
        "i\n",
        "i'm\t",
    ),
    *("not ", "never ", "or ", "4111111111111111 ", "AA00AAAA", "sorry ", "well "),
)


def taken(work: Callable[[], object], most: float) -> float:
    """Seconds of this process, which a busy machine changes little; `most` where it was not done by then."""
    began = time.process_time()

    def end(*of: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        work()
    except TimeoutError:
        return most
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return time.process_time() - began


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """The compiled patterns at the top of every module, also those within tables, by their names."""
    for found in pkgutil.walk_packages(llm_rlhf.__path__, "llm_rlhf."):
        if found.name.endswith(("__main__", ".smoke")):  # they run when they are imported
            continue
        for name, value in vars(importlib.import_module(found.name)).items():
            yield from _within(f"{found.name}.{name}", value, 3)


def _within(name: str, value: Any, levels: int) -> Iterator[tuple[str, re.Pattern[str]]]:
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield name, value
    elif levels and type(value) in (dict, list, tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _within(f"{name}[{key}]", item, levels - 1)


def uses(name: str) -> set[str]:
    """The methods by which a pattern is asked; anything that is not called by its name is searched for."""
    module, _, last = name.partition("[")[0].rpartition(".")
    own = [importlib.import_module(module).__file__ or ""] if last.startswith("_") else []
    paths = map(Path, own) if own else Path(llm_rlhf.__path__[0]).rglob("*.py")
    source = "".join(path.read_text("utf-8") for path in paths)
    calls = re.findall(rf"\b{last}(?:\[[^\]]*\])?\.(search|match|fullmatch|sub|split|findall|finditer)\(", source)
    return set(calls) or {"search"}


def takes_long(pattern: re.Pattern[str], method: str, opening: str, piece: str) -> bool:
    """Whether 48,000 characters take a second, by a pattern that takes long of 3,000 already."""

    def read(text: str) -> None:
        found: Any = pattern.sub("", text) if method == "sub" else getattr(pattern, method)(text)
        for _ in found if isinstance(found, Iterator) else ():  # finditer looks only as far as it is asked
            pass

    short, long = (opening + piece * (length // len(piece)) + "!\0" for length in (3_000, 48_000))
    return taken(lambda: read(short), 1) > 0.003 and taken(lambda: read(long), 1) >= 1


@pytest.mark.slow
def test_no_pattern_takes_quadratic_time() -> None:
    """48,000 characters take at most a fifth of a second; where time grows with the square, three and more."""
    asked = {value: (name, uses(name)) for name, value in patterns()}
    assert len(asked) > 70
    slow = [
        (name, *case)
        for pattern, (name, methods) in asked.items()
        for case in product(methods, OPENINGS, REPEATED)
        if takes_long(pattern, *case)
    ]
    assert not slow, slow[:5]


def test_a_quadratic_pattern_is_found() -> None:
    assert takes_long(re.compile(r"(?:\A|\n)\s*</think>"), "search", "", "\n")
    assert not takes_long(LIST_ITEM, "findall", "i", "\n")


MANY = 2**20  # characters
HOSTILE = (" ", "\n", "a.", "@", "0", "(((", '"', "i\t")


@pytest.mark.slow
@pytest.mark.parametrize("piece", HOSTILE, ids=repr)
def test_a_million_characters_are_read_in_seconds(piece: str) -> None:
    """Half a second to three on a free machine; with quadratic rules, a day."""
    text = "i" + piece * (MANY // len(piece)) + "x"
    for read in (lambda text: detect(text, text), opens_with_refusal, suspicions, _begun_by_prompt):
        assert taken(lambda: read(text), 40) < 40, read  # noqa: B023


def test_what_took_seconds_to_minutes_takes_a_moment() -> None:
    for work in (
        lambda: detect("", "x" + "\n" * 30_000 + "x"),
        lambda: opens_with_refusal("i" + " " * 30_000 + "x"),
        lambda: suspicions("a@b.de " * 20_000),
        lambda: _begun_by_prompt("x" + "\n" * 60_000 + "x" + WRITTEN.closing + "x"),
        lambda: benchmark_of("xstest=x" + ",limit=1" * 2_000),
    ):
        assert taken(work, 5) < 5


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("- a\n- b", 2),
        ("\n\n  - a\n\n\t2) b\n• c", 3),
        ("-\n\na", 1),  # the mark alone on its line
        ("- \n- a", 1),  # the second mark is the first one's text
        ("a - b\n-c\n1.d", 0),
        ("\r- a\x0b* b", 1),
        ("1", 0),
    ],
)
def test_items_of_a_list_are_counted_as_before(text: str, items: int) -> None:
    assert len(LIST_ITEM.findall(text)) == items == len(re.findall(r"(?m)^\s*(?:\d+[.)]|[-*•])\s+\S", text))


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("a thought\nCLOSE\nan answer", True),
        ("CLOSE an answer", True),
        (" \t CLOSE an answer", True),
        ("a thought CLOSE \nan answer", True),
        ("a thought CLOSE", True),
        ("the mark CLOSE ends thoughts", False),
        ("the mark CLOSE ends thoughts\nCLOSE\n", False),
        ("OPEN a thought\nCLOSE\nan answer", False),
        ("no mark", False),
    ],
)
def test_a_thought_that_the_prompt_opened_is_told_by_its_end(text: str, within: bool) -> None:
    assert _begun_by_prompt(text.replace("CLOSE", WRITTEN.closing).replace("OPEN", WRITTEN.opening)) is within


def test_of_overlapping_suspicions_the_narrowest_kind_counts() -> None:
    text = "a@b.de and 4111 1111 1111 1111 and +49 30 1234567, a.b+1@c.org 8.8.8.8"
    kinds = [found.kind for found in suspicions(text)]
    assert kinds == ["e-mail address", "payment card number", "phone number", "e-mail address", "IP address"]
    spans = [(found.start, found.end) for found in suspicions(text * 3)]
    assert spans == sorted(spans)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
