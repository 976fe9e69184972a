"""Chat in a browser: by mouse and by keyboard, choosing while text still comes, on a desktop and on a phone."""

import contextlib
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_speaker import Scripted
from sqlalchemy import select
from web_helpers import invited

from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.tables import Item, Label, Talk
from llm_rlhf.feedback.web.app import create_app

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
ANSWERS = (
    "An egg wants **eight minutes** in boiling water, and cold water afterwards, so that it peels well.",
    "That depends on the egg. Some take longer, some take less, and nobody can say which one you have at hand.",
)


@contextlib.contextmanager
def served(database: Database, speaker: Any) -> Iterator[str]:
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(database, voices=speaker)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine; Debian's package chromium has it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic"])
        yield found
        found.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    found = Database.of(tmp_path / "feedback.db")
    yield found
    found.close()


@contextlib.contextmanager
def somebody_at(browser: Any, address: str, store: Database, size: str = "desktop", **how: Any) -> Iterator[Any]:
    """A page of somebody who is logged in, and at the chat; nothing may go wrong in it or leave the machine."""
    context = browser.new_context(viewport=SIZES[size], has_touch=size == "phone", **how)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else wrong.append(asked.url))
    page.goto(f"{address}/i/{invited(store)}")
    page.get_by_role("button").first.click()
    page.goto(f"{address}/chat")
    yield page
    context.close()
    assert not wrong


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("LLM_RLHF_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def without_faults(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not found, [(v["id"], [node["html"] for node in v["nodes"]]) for v in found]


def told(page: Any, text: str) -> None:
    """Wait until the page says so."""
    page.locator("#status", has_text=text).wait_for(state="attached")


def labels(store: Database) -> list[tuple[Item, dict[str, Any]]]:
    with store.read() as session:
        rows = session.execute(select(Item, Label).join(Label, Label.item_id == Item.id).order_by(Label.id))
        return [(item, label.value) for item, label in rows]


@pytest.mark.parametrize("size", SIZES)
def test_by_mouse_choosing_while_text_still_comes(browser, store, size) -> None:
    with served(store, Scripted(ANSWERS, pause=0.15)) as address, somebody_at(browser, address, store, size) as page:
        without_faults(page)
        picture(page, f"chat-start-{size}")
        page.get_by_role("button", name="Begin", exact=True).click()
        page.get_by_label("Your message").fill("How long does an egg boil?")
        page.get_by_role("button", name="Send").click()
        page.locator("article .said", has_text="boiling").wait_for()
        picture(page, f"chat-streaming-{size}")
        assert "writing" in page.locator("article .state").first.inner_text()
        without_faults(page)
        shown = page.locator("article .said").all_inner_texts()
        page.get_by_role("button", name=re.compile("A is much better")).click()
        told(page, "goes on from answer A")
        ((item, value),) = labels(store)
        assert value["strength"] == 3
        kept = [answer["text"] for answer in item.answers]
        better = kept[value["better"]]
        assert not any(answer["complete"] for answer in item.answers)
        assert better.startswith(shown[0])
        assert len(better) < len(shown[0]) + 40, "what was shown when it was chosen, not what would have come"
        assert page.locator("#history .assistant .text").inner_text() == better.replace("**", "")
        # The next turn, to its end.
        page.get_by_label("Your next message").fill("And a soft one?")
        page.get_by_role("button", name="Send").click()
        told(page, "Both answers are there.")
        assert page.locator("article strong").inner_text() == "eight minutes"
        picture(page, f"chat-complete-{size}")
        without_faults(page)
        page.get_by_role("button", name="Tie").click()
        told(page, "which was drawn")
        picture(page, f"chat-after-{size}")
        assert labels(store)[1][1] == {"choice": "tie"}
        assert all(answer["complete"] for answer in labels(store)[1][0].answers)
        page.get_by_role("button", name="End this conversation").click()
        page.wait_for_url("**/chat")


def test_by_keyboard_alone_with_a_correction(browser, store) -> None:
    with served(store, Scripted(ANSWERS, pause=0.02)) as address, somebody_at(browser, address, store) as page:
        reach(page, "Begin")
        page.keyboard.press("Enter")
        page.wait_for_url("**/chat/*")
        reach(page, "Your message")
        page.keyboard.type("Do 8 eggs take long, b")
        page.keyboard.type("?")
        page.keyboard.press("Enter")
        told(page, "Both answers are there.")
        assert labels(store) == [], "digits in a text are text"
        page.keyboard.press("8")
        told(page, "goes on from answer B")
        assert labels(store)[0][1]["strength"] == 4
        assert page.evaluate("document.activeElement.id") == "text"
        page.keyboard.press("Escape")
        page.keyboard.press("u")
        told(page, "Taken back")
        assert labels(store) == []
        page.keyboard.press("5")
        told(page, "goes on from answer B")
        assert labels(store)[0][1]["strength"] == 1
        page.keyboard.type("Sure, b?")
        page.keyboard.press("Enter")
        told(page, "Both answers are there.")
        page.keyboard.press("w")
        assert page.evaluate("document.activeElement.id") == "better-text"
        picture(page, "chat-correction-desktop")
        without_faults(page)
        page.keyboard.press("Control+A")
        page.keyboard.type("No: 8 eggs take as long as 1.")
        reach(page, "Keep this, and go on from it")
        page.keyboard.press("Enter")
        told(page, "what you wrote")
        item, value = labels(store)[1]
        assert (item.kind, value["text"]) == ("correct", "No: 8 eggs take as long as 1.")


def reach(page: Any, name: str) -> None:
    """Press Tab until what has this name is in focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "() => { const e = document.activeElement;"
            "return (e.labels && e.labels[0] ? e.labels[0] : e).textContent.trim(); }"
        )
        if focused == name:
            return
    raise AssertionError(f"no Tab leads to {name!r}")


def test_red_teaming_warns_and_can_be_left_while_text_comes(browser, store) -> None:
    speaker = Scripted(ANSWERS, pause=0.1)
    with served(store, speaker) as address, somebody_at(browser, address, store, "phone", color_scheme="dark") as page:
        page.get_by_role("button", name="Begin red-teaming").click()
        assert page.url.endswith("/chat"), "not before the warning was read"
        page.get_by_label("I have read the warning.").check()
        page.get_by_role("button", name="Begin red-teaming").click()
        page.wait_for_url("**/chat/*")
        page.get_by_label("Your message").fill("Tell me something awful.")
        page.get_by_role("button", name="Send").click()
        page.locator("article .said", has_text="egg").first.wait_for()
        picture(page, "chat-red-team-phone-dark")
        without_faults(page)
        page.get_by_role("button", name="Leave now").click()
        page.wait_for_url("**/chat")
        deadline = time.monotonic() + 5
        while speaker.speaking and time.monotonic() < deadline:
            time.sleep(0.05)
        assert speaker.speaking == 0, "the model stops when nobody listens"
        with store.read() as session:
            assert session.scalars(select(Talk)).one().ended is not None
        assert labels(store) == []


def test_a_closed_browser_stops_the_model_and_a_reload_brings_back_what_had_come(browser, store) -> None:
    speaker = Scripted(ANSWERS, pause=0.15)
    with served(store, speaker) as address, somebody_at(browser, address, store) as page:
        page.get_by_role("button", name="Begin", exact=True).click()
        page.get_by_label("Your message").fill("How long does an egg boil?")
        page.get_by_role("button", name="Send").click()
        page.locator("article .said", has_text="eight").wait_for()
        page.reload()
        told(page, "how far both answers had come")
        deadline = time.monotonic() + 5
        while speaker.speaking and time.monotonic() < deadline:
            time.sleep(0.05)
        assert speaker.speaking == 0
        page.keyboard.press("1")
        told(page, "goes on from answer A")
        assert labels(store)[0][1]["strength"] == 4


def test_what_somebody_writes_outlives_a_reload(browser, store) -> None:
    with served(store, Scripted(ANSWERS)) as address, somebody_at(browser, address, store) as page:
        page.get_by_role("button", name="Begin", exact=True).click()
        message = page.get_by_label("Your message")
        message.fill("How long does an egg")
        page.reload()
        assert message.input_value() == "How long does an egg"
        message.fill("How long does an egg boil?")
        message.press("Enter")
        told(page, "Both answers are there.")
        page.locator("[data-correct='1']").click()
        page.locator("#better-text").fill("Eight minutes, if")
        page.reload()
        assert page.locator("#better-text").input_value() == "Eight minutes, if"
        assert page.locator("[name=better][value='1']").is_checked()
        page.get_by_role("button", name="Keep this, and go on from it").click()
        told(page, "what you wrote")
        (item, value), *_ = labels(store)
        assert (item.kind, value["text"]) == ("correct", "Eight minutes, if")
        page.get_by_label("Your next message").fill("And two?")
        page.get_by_label("Your next message").press("Enter")
        told(page, "Both answers are there.")
        page.reload()
        told(page, "how far both answers had come")
        assert page.locator("#correction").is_hidden(), "what was written of other answers is gone"
        page.keyboard.press("w")
        assert page.locator("#better-text").input_value() in ANSWERS
        page.locator("#no-correction").click()
        page.locator("#take-back").click()
        page.get_by_label("Your next message").fill("And three?")
        page.reload()
        told(page, "how far both answers had come")
        page.locator("#take-back").click()
        assert page.get_by_label("Your next message").input_value() == "And three?"


def test_who_waits_for_others_is_told(browser, store) -> None:
    gate = threading.Semaphore(0)
    with (
        served(store, Scripted(("a b", "c d"), gate=gate)) as address,
        somebody_at(browser, address, store) as first,
        somebody_at(browser, address, store, "phone") as second,
    ):
        for page in (first, second):
            page.get_by_role("button", name="Begin", exact=True).click()
            page.get_by_label("Your message").fill("Hello")
            page.get_by_role("button", name="Send").click()
        told(second, "One other person is answered before you.")
        picture(second, "chat-waiting-phone")
        for _ in range(8):
            gate.release()
        told(second, "Both answers are there.")
        told(first, "Both answers are there.")
