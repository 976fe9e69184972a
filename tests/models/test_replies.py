"""Sampled replies: a function of model, prompt and seed, whatever stands beside them; kept across interruptions."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from llm_rlhf.models.inference import ReplyCache, load_roles, sample_replies
from llm_rlhf.models.random_draws import prompt_uniforms
from llm_rlhf.recipe.sections import ModelSection

PROMPTS = [[{"role": "user", "content": text}] for text in ("a", "why not", "tell me more of it", "why not", "go")]


@pytest.fixture(scope="module")
def model(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    return load_roles(base_folder, ModelSection(base=str(base_folder)), tokenizer, {}), tokenizer


def replies(model, prompts=PROMPTS, **options):
    given = {"response_length": 12, "temperature": 1.0, "seed": 0, "batch_size": 2} | options
    return sample_replies(*model, prompts, [], **given)


@pytest.mark.slow
def test_a_reply_depends_on_its_prompt_and_the_seed_alone(model) -> None:
    known = [reply.ids for reply in replies(model)]
    for batch_size in (1, 5):
        assert [r.ids for r in replies(model, batch_size=batch_size)] == known
    turned = [r.ids for r in replies(model, PROMPTS[::-1])]
    assert [turned[4], turned[2], turned[0]] == [known[0], known[2], known[4]]
    assert {tuple(turned[1]), tuple(turned[3])} == {tuple(known[1]), tuple(known[3])}  # the same prompt twice
    assert known[1] != known[3]  # and two replies to it
    assert [r.ids for r in replies(model, seed=1)] != known


def test_the_state_of_torchs_generator_is_neither_read_nor_moved(model) -> None:
    torch.manual_seed(1)
    known = [reply.ids for reply in replies(model)]
    first = torch.rand(1)
    torch.manual_seed(2)
    assert [reply.ids for reply in replies(model)] == known
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), first)


def test_temperature_zero_takes_the_most_likely_token(model) -> None:
    causal_lm, _ = model
    (reply,) = replies(model, PROMPTS[:1], temperature=0.0, response_length=5)
    ids = list(reply.prompt_ids)
    for token in reply.ids:
        with torch.no_grad():
            assert causal_lm.get_base_model()(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
        ids.append(token)


def test_samples_follow_the_models_probabilities(model) -> None:
    causal_lm, _ = model
    one = replies(model, PROMPTS[:1] * 2000, response_length=1, batch_size=500, temperature=0.7)
    with torch.no_grad():
        logits = causal_lm.get_base_model()(input_ids=torch.tensor([one[0].prompt_ids])).logits[0, -1].float()
    probabilities = (logits / 0.7).softmax(-1).numpy()
    counts = np.bincount([r.ids[0] for r in one], minlength=len(probabilities))
    top = probabilities.argmax()
    # Four standard errors of a share: one run in 16,000 falls outside, and the numbers are fixed.
    assert (
        abs(counts[top] / 2000 - probabilities[top]) < 4 * (probabilities[top] * (1 - probabilities[top]) / 2000) ** 0.5
    )


def test_uniform_numbers_are_uniform_and_apart() -> None:
    rows = np.stack([prompt_uniforms(0, [5, 6], i, 64) for i in range(200)])
    assert rows.min() >= 0
    assert rows.max() < 1
    assert abs(rows.mean() - 0.5) < 4 * (1 / 12 / rows.size) ** 0.5
    assert len(np.unique(rows)) == rows.size
    assert np.array_equal(prompt_uniforms(0, [5, 6], 3, 10), rows[3][:10])  # a longer reply begins like a shorter one


def test_an_interrupted_call_goes_on_where_it_stopped(model, tmp_path) -> None:
    known = [reply.ids for reply in replies(model)]
    path, of = tmp_path / "cache" / "sft.jsonl", {"policy": "abc", "seed": 0}
    replies(model, PROMPTS[:3], known=ReplyCache(path, of))
    (file,) = path.parent.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])  # killed while it wrote the last row
    cache = ReplyCache(path, of)
    assert len(cache.known) == 2
    assert [reply.ids for reply in replies(model, known=cache)] == known
    again = ReplyCache(path, of)
    assert len(again.known) == 5
    assert again.known_of([(reply.prompt_ids, 0) for reply in replies(model)[:3]]) == dict(enumerate(known[:3]))
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    assert all(set(row) == {"key", "ids"} for row in rows)


def test_replies_of_another_policy_or_decoding_are_not_taken(model, tmp_path) -> None:
    path = tmp_path / "sft.jsonl"
    replies(model, known=ReplyCache(path, {"policy": "abc", "seed": 0}))
    asked = [(replies(model)[0].prompt_ids, 0)]
    assert ReplyCache(path, {"policy": "abc", "seed": 0}).known_of(asked)
    assert not ReplyCache(path, {"policy": "abd", "seed": 0}).known_of(asked)
