"""A lead at their pages in a real browser, on a desk and on a phone, in light and in dark."""

from pathlib import Path
from typing import Any

import pytest
from feedback_helpers import asked, better, says, somebody
from sqlalchemy import select
from test_web_walks import SIZES, Walk, axe, chromium  # noqa: F401 - a fixture
from web_helpers import invited

from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.tables import Decision, Flag, Item

pytestmark = pytest.mark.slow
PAGES = ["", "/disagreements", "/reports", "/known", "/people", "/settings", "/items/1", "/items/2"]
HELD = Question(
    "compare", [{"role": "user", "content": "Write to jane.roe@example.org."}], [{"text": "a"}, {"text": "b"}]
)


def with_labels(walk: Walk) -> None:
    """Two people who disagree on a comparison and on a rating, after 20 on which they agree."""
    one, other = somebody(walk.database), somebody(walk.database)
    for number in range(20):
        item = asked(walk.database, "compare", f"And what of {number}?", [f"One {number}.", f"Two of {number}."])
        for person in (one, other):
            says(walk.database, person, item, better(number % 2))
    compared = asked(walk.database, "compare", "How many?", ["# Eight\n\n" + "It is eight. " * 80, "Six."])
    rated = asked(walk.database, "rate", "How good?", ["Good."])
    for person, place in ((one, 0), (other, 1)):
        says(walk.database, person, compared, better(place))
        says(walk.database, person, rated, {"helpful": 2 + 4 * place, "harmless": 7})


@pytest.fixture(params=[("desk", "light"), ("phone", "dark"), ("phone", "light")], ids="-".join)
def lead(request: pytest.FixtureRequest, chromium: Any, tmp_path: Path) -> Any:  # noqa: F811 - the fixture
    with Walk(chromium, tmp_path, *request.param, [HELD]) as walk:
        with_labels(walk)
        walk.page.goto(f"{walk.base}/i/{invited(walk.database, 'lead')}")
        walk.come_in()
        yield walk


def test_every_page_can_be_read_by_everybody_and_is_no_wider_than_the_screen(lead: Walk) -> None:
    for path in PAGES:
        lead.page.goto(f"{lead.base}/lead{path}")
        for closed in lead.page.query_selector_all("main details:not([open]) > summary"):
            closed.click()
        wide = lead.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= SIZES[lead.size]["viewport"]["width"], path
        found = axe.Axe().run(lead.page).response["violations"]
        told = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert told == [], path


def test_a_lead_settles_releases_and_invites(lead: Walk) -> None:
    page = lead.page
    page.goto(f"{lead.base}/lead/disagreements")
    case = page.locator("article", has_text="How many?")
    case.get_by_role("button", name="Decide").click()  # nothing is chosen yet
    assert page.locator(".settled").count() == 0
    case.get_by_label("Your decision").select_option("A is better")
    case.get_by_label("Comment").fill("Count them.")
    case.get_by_role("button", name="Decide").click()
    page.get_by_text("is settled: A is better").wait_for()
    page.goto(f"{lead.base}/lead/reports")
    page.get_by_label("Your reason").fill("Nobody's address.")
    page.get_by_role("button", name="Release it").click()
    page.get_by_text("asked like any other").wait_for()
    page.goto(f"{lead.base}/lead/people")
    page.get_by_label("Name, if you want it kept").fill("Hedy")
    page.get_by_role("button", name="Make a link").click()
    assert page.get_by_label("Link").input_value().startswith(f"{lead.base}/i/")
    with lead.database.read() as session:
        decision = session.scalars(select(Decision)).one()
        assert (decision.value, decision.comment) == (better(0), "Count them.")
        assert session.scalars(select(Flag.resolution)).all() == ["released: Nobody's address."]
        assert session.scalars(select(Item.state).distinct()).all() == ["open"]


def test_a_setting_that_cannot_be_is_told_beside_what_was_written(lead: Walk) -> None:
    page = lead.page
    page.goto(f"{lead.base}/lead/settings")
    field = page.get_by_label("Share of known questions among those shown")
    field.fill("7")
    page.get_by_role("button", name="Save the settings").click()
    page.get_by_text("gold_share is 7.0; it is a share").wait_for()
    assert field.input_value() == "7"
    field.fill("0.2")
    page.get_by_role("button", name="Save the settings").click()
    page.get_by_text("Done: it is saved.").wait_for()
    assert field.input_value() == "0.2"
    lead.faults[:] = [fault for fault in lead.faults if "400" not in fault]  # what was refused, the console tells
