"""Which of two replies is the better: numbers worked by hand, log-probabilities against plain transformers."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.evaluation.report.alarms import alarm_lines
from llm_rlhf.evaluation.suites.hhh import PairLogprobs, hhh_estimates, pair_logprobs
from llm_rlhf.evaluation.suites.perplexity import Losses, demonstrations_of, perplexity_estimates, read_replies
from llm_rlhf.models.inference import load_roles, reply_logprobs, sample_replies
from llm_rlhf.recipe.sections import ModelSection

NAMES = ("ppo", "sft")


def pair(i: int, objective: str = "overall", chosen: str = "good", rejected: str = "bad") -> Preference:
    return Preference([{"role": "user", "content": f"q{i}"}], chosen, rejected, objective, Origin("x", i))


def logprobs(total: list, tokens: list) -> PairLogprobs:
    return PairLogprobs(np.array(total, float), np.array(tokens, float))


def test_accuracies_worked_by_hand() -> None:
    pairs = [pair(0, "helpful"), pair(1, "helpful", "ok"), pair(2, "honest"), pair(3)]
    # Better reply first. The whole log-probability names the better one in 1 of 4, per token in 3 of 4.
    ppo = logprobs([[-4, -3], [-2, -3], [-6, -3], [-9, -3]], [[4, 2], [1, 3], [6, 2], [9, 2]])
    sft = logprobs([[-4, -3], [-4, -3], [-4, -3], [-4, -3]], [[1, 1]] * 4)
    scores = {"reward": np.array([[1.0, 0], [0, 1], [1, 1], [2, 1]])}
    found = {
        (e.name, e.subject, e.split): e.estimate
        for e in hhh_estimates(pairs, {"ppo": ppo, "sft": sft}, scores, NAMES, 200)
    }
    assert found["hhh_accuracy", "ppo", "all"] == 0.75
    assert found["hhh_accuracy_total", "ppo", "all"] == 0.25
    assert found["hhh_accuracy", "sft", "all"] == 0.0
    assert found["hhh_accuracy_change", "ppo", "all"] == 0.75
    assert found["hhh_accuracy", "ppo", "helpful"] == 0.5
    assert found["hhh_accuracy", "ppo", "honest"] == 1.0
    assert found["hhh_accuracy", "reward", "all"] == 0.625  # right, wrong, a tie, right
    assert found["hhh_longer_reply_accuracy", "baseline", "all"] == 0.75
    assert ("hhh_accuracy", "ppo", "overall") not in found


def test_pairs_of_one_prompt_count_once_and_endpoints_are_left_out() -> None:
    pairs = [pair(0), pair(0), pair(1)]
    ppo = logprobs([[-1, -2]] * 3, [[1, 1]] * 3)
    found = hhh_estimates(pairs, {"ppo": ppo}, {}, NAMES, 200)
    assert {e.n for e in found} == {2}
    assert {e.name for e in found} == {"hhh_accuracy", "hhh_accuracy_total", "hhh_longer_reply_accuracy"}
    assert all("_change" not in e.name for e in found)


def test_policies_that_agree_everywhere_are_not_certain_to_be_equal() -> None:
    pairs = [pair(0), pair(0), pair(1), pair(1)]
    same = logprobs([[-1, -2], [-2, -1], [-1, -2], [-1, -2]], [[1, 1]] * 4)
    found = hhh_estimates(pairs, {"ppo": same, "sft": same}, {}, NAMES, 200)
    (change,) = (e for e in found if e.name == "hhh_accuracy_change")
    assert (change.estimate, change.n) == (0.0, 2)
    assert change.low == pytest.approx(-0.49, abs=1e-4)  # 1.96 * sqrt(1 / 4 / 4): almost nothing is known of two


@pytest.fixture(scope="module")
def model(base_folder, tokenizer):
    return load_roles(base_folder, ModelSection(base=str(base_folder)), tokenizer, {}, temperature=0.5)


def test_log_probabilities_are_those_of_plain_transformers_at_temperature_one(model, base_folder, tokenizer) -> None:
    pairs = [pair(i, chosen="yes" * (i + 1), rejected="no") for i in range(5)]
    found = pair_logprobs(model, tokenizer, [], pairs, 3)
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    for row, given in enumerate(pairs):
        for column, reply in enumerate((given.chosen, given.rejected)):
            prompt = tokenizer.apply_chat_template(given.prompt, add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
            ids = [*prompt, *tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logits = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
            wanted = sum(logits[t - 1, ids[t]].item() for t in range(len(prompt), len(ids)))
            assert found.total[row, column] == pytest.approx(wanted, abs=1e-4)  # fp32 sums in another order
            assert found.tokens[row, column] == len(ids) - len(prompt)
    alone = pair_logprobs(model, tokenizer, [], pairs, 1).total
    assert np.allclose(alone, found.total, atol=1e-4)  # fp32 sums at another padded width


def test_sampling_keeps_its_temperature_afterwards(base_folder, tokenizer) -> None:
    model = load_roles(base_folder, ModelSection(base=str(base_folder)), tokenizer, {}, temperature=0.5)
    asked = [pair(i).prompt for i in range(3)]
    replies = sample_replies(model, tokenizer, asked, [], response_length=4, temperature=0.5, seed=0)
    before = reply_logprobs(model, [], replies, tokenizer.pad_token_id)
    one = read_replies(model, tokenizer, [], asked, ["x"] * 3, 2)
    cut = read_replies(model, tokenizer, [], asked, ["x"] * 3, 2, [True, False, True])
    assert [len(ids) for ids in cut.tokens] == [2, 1, 2]
    assert cut.logprobs[1] > one.logprobs[1]  # without the end's
    assert reply_logprobs(model, [], replies, tokenizer.pad_token_id) == before
    assert one.tokens == [[*tokenizer("x", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]] * 3


def test_perplexity_worked_by_hand() -> None:
    rows = [pair(0), pair(1), pair(2)]
    tokens = [[1], [1, 2, 3], [1, 2, 3, 4]]
    losses = {"sft": Losses([-1.0, -3.0, -4.0], tokens), "ppo": Losses([-2.0, -6.0, -12.0], tokens)}
    found = {(e.name, e.subject): e for e in perplexity_estimates(rows, losses, NAMES, 500)}
    assert found["perplexity", "sft"].estimate == pytest.approx(math.e)
    after = found["perplexity", "ppo"]
    assert after.estimate == pytest.approx(math.exp(20 / 8))  # every token counts alike, not every reply
    assert after.low == pytest.approx(math.exp(2))  # only replies of 2 nats a token are drawn
    assert after.low < after.estimate < after.high
    change = found["token_logprob_change", "ppo"]
    assert (change.estimate, change.reference, change.n) == (-1.5, "sft", 3)
    assert any("has lost language" in line for line in alarm_lines(list(found.values())))
    mild = {"sft": losses["sft"], "ppo": Losses([-1.1, -3.3, -4.4], tokens)}
    assert not any("language" in line for line in alarm_lines(perplexity_estimates(rows, mild, NAMES, 500)))


def test_held_out_rows_are_chosen_by_their_prompts() -> None:
    rows = [pair(i) for i in range(30)]
    chosen = demonstrations_of(rows, 10)
    assert chosen == [row for row in rows if row in chosen]
    assert sorted(json.dumps(r.prompt) for r in demonstrations_of(rows[::-1], 10)) == sorted(
        json.dumps(r.prompt) for r in chosen
    )
