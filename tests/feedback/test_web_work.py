"""The work routes, for programs and for pages."""

from web_helpers import client, filled, pair

from llm_rlhf.feedback.database import Database


def test_questions_come_one_after_another_until_none_is_left(database: Database) -> None:
    filled(database, [pair(1), pair(2)])
    somebody = client(database)
    told = somebody.get("/work").json()
    assert told["progress"] == {"said": 0, "remaining": 1}
    for _ in range(2):
        task = told["task"]
        value = {"choice": "better", "better": 0, "strength": 2}
        told = somebody.post(f"/work/{task['assignment']}", json={"value": value, "seconds": 3.5}).json()
    assert told["task"] is None
    assert told["progress"] == {"said": 2, "remaining": 0}
