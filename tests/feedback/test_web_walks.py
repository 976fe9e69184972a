"""People at the page, in a real browser: every task by mouse and by keyboard, on a desk and on a phone.

Nothing leaves this machine: a request to anywhere else fails the test.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select
from web_helpers import filled, invited, serving

from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.tables import Assignment, Flag, Item, Label
from llm_rlhf.feedback.web.app import create_app

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {
    "desk": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
SPIDER = [{"role": "user", "content": "How many legs has a spider?"}]
TALK = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is a spider?"},
    {"role": "assistant", "content": "An animal with **eight** legs."},
    {"role": "user", "content": "And an ant?"},
]
LONG = "It has eight legs, as all of its kind have. " * 60
TEXTS = ["Eight.", "Six.", "Ten."]
ANSWERS = [{"text": text} for text in TEXTS]
QUESTIONS = {
    "compare": Question(
        "compare", TALK, [{"text": LONG}, {"text": "# Six\n\n| a | b |\n|---|---|\n| 1 | 2 |"}], "helpful"
    ),
    "rate": Question("rate", SPIDER, ANSWERS[:1]),
    "rank": Question("rank", SPIDER, ANSWERS),
    "demonstrate": Question("demonstrate", SPIDER),
    "correct": Question("correct", SPIDER, ANSWERS[:2]),
    "annotate": Question("annotate", SPIDER, ANSWERS[1:2], topic="animals"),
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; Debian's package chromium has it")
    os.environ.setdefault("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Walk:
    """One person at a page in a browser, with a store of their own."""

    def __init__(self, chromium: Any, folder: Path, size: str, scheme: str, questions: list[Question]) -> None:
        self.database = Database.of(folder / "feedback.db")
        filled(self.database, questions)
        self.chromium, self.size, self.scheme = chromium, size, scheme
        self.strangers: list[str] = []
        self.faults: list[str] = []

    def __enter__(self) -> "Walk":
        self.server = serving(create_app(self.database))
        host, port = self.server.__enter__()
        self.base = f"http://{host}:{port}"
        self.context = self.chromium.new_context(color_scheme=self.scheme, reduced_motion="reduce", **SIZES[self.size])
        self.context.route("**/*", self._only_here)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.goto(f"{self.base}/i/{invited(self.database)}")
        return self

    def __exit__(self, *raised: object) -> None:
        self.context.close()
        self.server.__exit__(None, None, None)
        self.database.close()
        if raised[0] is None:
            assert self.strangers == []
            assert self.faults == []

    def _only_here(self, route: Any) -> None:
        if urlsplit(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            self.strangers.append(route.request.url)
            route.abort()

    def come_in(self) -> None:
        self.page.get_by_role("button", name="Come in").click()
        self.page.wait_for_url(f"{self.base}/")

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def wait_for(self, kind: str) -> None:
        self.page.wait_for_selector(f'#task [data-kind="{kind}"]')

    def labels(self) -> list[dict[str, Any]]:
        """What was said, by the page's places."""
        with self.database.read() as session:
            told = []
            for label in session.scalars(select(Label).order_by(Label.id)):
                order, value = session.get_one(Assignment, label.assignment_id).order, dict(label.value)
                if "better" in value:
                    value["better"] = order.index(value["better"])
                if "ranks" in value:
                    value["ranks"] = [value["ranks"][place] for place in order]
                told.append(value)
            return told


@pytest.fixture(params=list(SIZES))
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def by_mouse(walk: Walk, kind: str) -> dict[str, Any]:
    """Answer the question that is shown; the label that it has to be."""
    page = walk.page
    button = page.get_by_role("button", name="Save", exact=False)
    if kind == "compare":
        page.get_by_role("button", name=re.compile("B is much better")).click()
        return {"choice": "better", "better": 1, "strength": 3}
    if kind == "rate":
        page.locator(".grade", has_text="Helpful 6").click()
        page.locator(".grade", has_text="Harmless 7").click()
        button.click()
        return {"helpful": 6, "harmless": 7}
    if kind == "rank":
        page.get_by_label("Place of answer C").select_option("1")
        page.get_by_role("button", name=re.compile("best is A")).click()
        page.get_by_role("button", name=re.compile("best is B")).click()
        assert page.locator("#ranking").text_content() == "C, then A, then B"
        button.click()
        return {"ranks": [2, 3, 1]}
    if kind == "correct":
        page.locator(".pick", has_text="B: The better one").click()
        field = page.get_by_label("What it should have said")
        assert field.input_value() in TEXTS
        field.fill("It has eight.")
        button.click()
        return {"better": 1, "text": "It has eight."}
    if kind == "annotate":
        page.get_by_label("wrong fact").check()
        page.get_by_label("Comment").fill("It has eight.")
        button.click()
        return {"labels": ["wrong fact"], "comment": "It has eight."}
    page.get_by_label("Your answer").fill("It has eight.")
    button.click()
    return {"text": "It has eight."}


def by_keyboard(walk: Walk, kind: str) -> dict[str, Any]:
    if kind == "compare":
        walk.keys("2")
        return {"choice": "better", "better": 0, "strength": 3}
    if kind == "rate":
        walk.keys("3", "5", "Enter")
        return {"helpful": 3, "harmless": 5}
    if kind == "rank":
        walk.keys("1", "Backspace", "2", "=", "3", "1", "Enter")
        return {"ranks": [2, 1, 1]}
    if kind == "correct":
        walk.keys("2", "w")
        walk.page.keyboard.type(" 1s0bu?")  # while somebody types, these are letters
        walk.keys("Control+Enter")
        return {"better": 1}
    if kind == "annotate":
        walk.keys("1", "3", "w")
        walk.page.keyboard.type("is 2 s")
        walk.keys("Escape", "1", "Enter")
        return {"labels": ["rude"], "comment": "is 2 s"}
    walk.keys("w")
    walk.page.keyboard.type("sub0?")
    walk.keys("Control+Enter")
    return {"text": "sub0?"}


@pytest.mark.parametrize("hand", [by_mouse, by_keyboard])
def test_every_task_is_done(chromium: Any, tmp_path: Path, size: str, hand: Any) -> None:
    with Walk(chromium, tmp_path, size, "light", list(QUESTIONS.values())) as walk:
        if hand is by_keyboard:
            # a browser gives the focus with the first picture, which may come after the page has loaded
            playwright.expect(walk.page.get_by_role("button", name="Come in")).to_be_focused(timeout=10_000)
            walk.keys("Enter")
            walk.page.wait_for_url(f"{walk.base}/")
        else:
            walk.come_in()
        walk.page.goto(f"{walk.base}/tasks")
        expected = []
        for kind in QUESTIONS:
            walk.wait_for(kind)
            expected.append(hand(walk, kind))
        walk.wait_for("none")
        said = walk.labels()
        assert len(said) == len(expected)
        for kind, label, wanted in zip(QUESTIONS, said, expected, strict=True):
            if kind == "correct" and "text" not in wanted:
                assert label.pop("text") in [f"{text} 1s0bu?" for text in TEXTS]
            assert label == wanted, kind
        if hand is by_keyboard:
            walk.keys("u")
            walk.wait_for("annotate")
            assert len(walk.labels()) == len(expected) - 1


def test_tie_both_bad_skip_undo_report_and_help_by_keys(chromium: Any, tmp_path: Path) -> None:
    pairs = [Question("compare", [{"role": "user", "content": f"{n}?"}], ANSWERS[:2]) for n in range(5)]
    with Walk(chromium, tmp_path, "desk", "dark", pairs) as walk:
        page = walk.page
        walk.come_in()
        page.goto(f"{walk.base}/tasks")

        def shown(number: int) -> None:
            page.wait_for_selector(f'.turn.user:has-text("{number}?")')

        for number, key in enumerate(("0", "b")):
            shown(number)
            walk.keys(key)
        shown(2)
        page.wait_for_selector('#notice:has-text("Saved.")')
        assert page.evaluate("document.activeElement.tagName") == "H1"
        walk.keys("?")
        page.get_by_role("dialog", name="Keys").wait_for()
        walk.keys("1", "Escape")  # behind a sheet, keys do nothing
        walk.keys("g")
        page.get_by_role("dialog", name="Guidelines").get_by_text("Longer is not better by itself.").wait_for()
        walk.keys("Escape", "s", "2")
        shown(3)
        walk.keys("u")
        shown(2)
        walk.keys("u")
        shown(1)
        assert page.get_by_role("button", name=re.compile("Both bad")).get_attribute("aria-pressed") == "true"
        walk.keys("1")
        shown(2)
        walk.keys("r", "p")  # personal data: shown to nobody from now on
        shown(3)
        walk.keys("r")
        page.get_by_label("Something else is wrong with it").fill("s1")
        with page.expect_response("**/report*"):  # the notice of the first one still stands there
            page.get_by_role("button", name="Report", exact=True).last.click()
        page.wait_for_selector('#notice:has-text("Reported.")')
        shown(3)
        with walk.database.read() as session:
            assert [flag.kind for flag in session.scalars(select(Flag).order_by(Flag.id))] == ["personal", "report"]
            assert session.scalar(select(Item.state).where(Item.id == 3)) == "held"
        assert walk.labels() == [{"choice": "tie"}, {"choice": "better", "better": 0, "strength": 4}]


def test_a_draft_is_saved_while_somebody_writes_and_the_focus_stays(chromium: Any, tmp_path: Path, size: str) -> None:
    with Walk(chromium, tmp_path, size, "light", [QUESTIONS["demonstrate"]]) as walk:
        walk.come_in()
        page = walk.page
        page.goto(f"{walk.base}/tasks")
        field = page.get_by_label("Your answer")
        field.click()
        page.keyboard.type("Half an ans")
        page.wait_for_selector('#draft-state:has-text("Draft saved")')
        assert page.evaluate("document.activeElement.name") == "text"
        page.keyboard.type("wer")
        page.goto(f"{walk.base}/me")  # leaving saves what was not yet saved
        page.goto(f"{walk.base}/tasks")
        playwright.expect(page.get_by_label("Your answer")).to_have_value("Half an answer")
        assert walk.labels() == []


def test_the_time_is_that_in_sight_also_over_a_reload(chromium: Any, tmp_path: Path) -> None:
    with Walk(chromium, tmp_path, "desk", "light", [QUESTIONS["compare"]]) as walk:
        walk.come_in()
        page = walk.page
        page.goto(f"{walk.base}/tasks")
        walk.wait_for("compare")
        page.wait_for_timeout(900)
        page.goto(f"{walk.base}/me")
        page.wait_for_timeout(900)
        page.goto(f"{walk.base}/tasks")
        walk.wait_for("compare")
        page.wait_for_timeout(300)
        walk.keys("8")
        walk.wait_for("none")
        with walk.database.read() as session:
            label, assignment = session.scalars(select(Label)).one(), session.scalars(select(Assignment)).one()
            assert assignment.ended is not None
            open_for = (assignment.ended - assignment.shown).total_seconds()
        assert 1.2 <= label.seconds <= open_for - 0.9


def test_without_a_connection_it_says_so_and_nothing_is_lost(chromium: Any, tmp_path: Path) -> None:
    with Walk(chromium, tmp_path, "desk", "light", [QUESTIONS["demonstrate"]]) as walk:
        walk.come_in()
        page = walk.page
        page.goto(f"{walk.base}/tasks")
        page.get_by_label("Your answer").fill("It has eight.")
        page.wait_for_selector('#draft-state:has-text("Draft saved")')
        walk.context.set_offline(True)
        page.get_by_role("button", name="Save").click()
        page.wait_for_selector('#alert:has-text("nothing is kept twice")')
        assert page.get_by_label("Your answer").input_value() == "It has eight."
        walk.context.set_offline(False)
        page.get_by_role("button", name="Save").click()
        walk.wait_for("none")
        assert walk.labels() == [{"text": "It has eight."}]
        assert all("htmx:" in fault or "ERR_INTERNET_DISCONNECTED" in fault for fault in walk.faults)
        walk.faults.clear()


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])  # colours do not know the size
def test_every_page_can_be_read_and_reached_by_everybody(chromium: Any, tmp_path: Path, size: str, scheme: str) -> None:
    questions = [*QUESTIONS.values(), Question("compare", SPIDER, ANSWERS[1:], "harmless", topic="insects")]
    with Walk(chromium, tmp_path, size, scheme, questions) as walk:
        page, judge = walk.page, axe.Axe()

        def check(what: str) -> None:
            found = judge.run(page).response["violations"]
            grave = [rule for rule in found if rule["impact"] in ("serious", "critical")]
            told = [(rule["id"], [node["html"][:120] for node in rule["nodes"]]) for rule in grave]
            assert told == [], what
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wider <= 0, f"{what} is wider than the screen by {wider} pixels"

        check("invitation")
        walk.come_in()
        for path in ("/", "/consent", "/guidelines", "/me", "/nothing", "/tasks?topic=none"):
            page.goto(walk.base + path)
            check(path)
        for kind in QUESTIONS:
            page.goto(f"{walk.base}/tasks?kind={kind}")
            walk.wait_for(kind)
            check(kind)
        for key in ("s", "r", "?", "g"):
            walk.keys(key)
            page.locator("dialog[open]").wait_for()
            check(f"the sheet of {key}")
            walk.keys("Escape")
        walk.faults.clear()  # the page that is not there
