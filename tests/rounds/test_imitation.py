"""A demonstration is preferred to what the policy says to its prompt, where the two differ."""

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Demonstration, Origin, Prompt
from llm_rlhf.rounds.imitation import demonstrated, pair_of


def _row(question: str, reply: str, number: int = 1) -> Demonstration:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return Demonstration(messages, Origin("demonstrations.jsonl", number))


def test_each_prompt_has_what_was_first_written_to_it() -> None:
    rows = [_row("what is it?", "a fox."), _row("what is it?", "an owl.", 2), _row("where?", "there.", 3)]
    found = demonstrated(rows, 0.0)
    assert [(prompt.messages[0]["content"], reply) for prompt, reply in found.values()] == [
        ("what is it?", "a fox."),
        ("where?", "there."),
    ]


def test_those_of_evaluation_are_left_out() -> None:
    rows = [_row(f"question {n}?", "yes.") for n in range(200)]
    found = demonstrated(rows, 0.25)
    assert 120 < len(found) < 180
    assert all(prompt_share(prompt.messages, "split") >= 0.25 for prompt, _ in found.values())
    opens = Demonstration([{"role": "assistant", "content": "a line alone."}], Origin("f", 1))
    assert not demonstrated([opens], 0.0)


def test_a_pair_by_hand() -> None:
    prompt = Prompt([{"role": "user", "content": "what is it?"}], "overall", Origin("f", 1))
    assert pair_of(prompt, (prompt, " a fox. "), "an owl.\n") == {
        "prompt": prompt.messages,
        "chosen": [{"role": "assistant", "content": "a fox."}],
        "rejected": [{"role": "assistant", "content": "an owl."}],
        "objective": "overall",
    }
    assert pair_of(prompt, (prompt, "a fox."), " a fox.") is None
    assert pair_of(prompt, (prompt, "a fox."), " ") is None
    assert pair_of(prompt, None, "an owl.") is None
