"""Which prompts are of one wording, and what becomes of a comparison whose prompts come in few."""

import pytest

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.suites.gains import compare
from llm_rlhf.evaluation.wordings import Wordings, wordings
from llm_rlhf.statistics.intervals import paired_proportions

LONG = "please explain to me in some detail how the city council of a small town decides about its yearly budget"


def asked(text: str, **facts: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}], "helpful", Origin("made up", 1), dict(facts))


def test_phrasings_where_they_are_known_and_near_duplicates_where_not() -> None:
    prompts = [
        asked("what does the fox eat?", phrasing="what does the X eat?"),
        asked("what does the crow eat?", phrasing="what does the X eat?"),
        asked("tell me of the crow", phrasing="tell me of the X"),
        asked(LONG + "?"),
        asked(LONG + " today?"),
        asked("How do I boil an egg?"),
        asked("how do i boil an egg"),
        asked("How do I boil water?"),
    ]
    found = wordings(prompts)
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4]
    assert found[5] == found[6]
    assert len(set(found)) == 5


def test_a_chain_of_near_prompts_is_one_wording() -> None:
    """Each adds to the one before; the first and the last are not near each other."""
    tails = ["", " in spring", " in spring and in autumn", " in spring and in autumn and in winter"]
    found = wordings([asked(LONG + tail) for tail in tails])
    assert len(set(found)) == 1


def test_wordings_are_those_of_the_rows_in_question() -> None:
    prompts = [asked(text, phrasing=text[0]) for text in ("b one", "a one", "a two")]
    known = Wordings(prompts)
    assert len(set(known.of().tolist())) == 2
    assert known.of([0, 1]).tolist() == [2, 0]  # as their texts are ordered: "b one" is the last of the three
    assert Wordings(prompts, in_order=True).of([2, 0]).tolist() == [2, 0]


def answers(gold: list[float], refused: list[bool]) -> Answers:
    n = len(gold)
    return Answers([f"{g}" for g in gold], [3] * n, [True] * n, gold=gold, heldout=gold, refused=refused)


def test_the_comparison_takes_phrasings_together() -> None:
    """Two phrasings of five harmful prompts each: one gains 1, the other loses 1."""
    facts = [{"kind": "harmful", "phrasing": phrasing} for phrasing in "ab" for _ in range(5)]
    prompts = [
        Prompt([{"role": "user", "content": f"q{i}"}], "harmless", Origin("w", i), known)
        for i, known in enumerate(facts)
    ]
    before = answers([0.0] * 10, [False] * 10)
    after = answers([1.0] * 5 + [-1.0] * 5, [True] * 5 + [False] * 5)
    found = {(e.name, e.subject, e.split): e for e in compare(prompts, after, before, 200)}
    gain = found["gold_harmless_gain", "ppo", "all"]
    assert (gain.estimate, gain.n, gain.clusters) == (0.0, 10, 2)
    assert gain.high == pytest.approx(12.7062, abs=1e-3)  # t of one degree of freedom, standard error 1
    assert "over 2 wordings" in gain.method
    change = found["refusal_harmful_change", "ppo", "all"]
    assert (change.estimate, change.clusters) == (0.5, 2)
    assert change.low < 0 < change.high  # two phrasings show nothing; ten prompts taken for independent would:
    assert paired_proportions([1.0] * 5 + [0.0] * 5, [0.0] * 10).low > 0
    assert found["refusal_harmful", "sft", "all"].clusters == 2
    assert found["win_rate", "ppo", "gold"].clusters == 2
    assert found["heldout_reward_spread", "sft", "all"].estimate == 0.0
