"""GRPO and RLOO are paid what PPO is paid for the same reply."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import ASKED, make, moved
from model_helpers import random_reward_adapter
from peft import get_peft_model_state_dict
from peft.utils import load_peft_weights
from ppo_helpers import fixed_responses, make_trainer, responses_of, rollout
from transformers import AutoModelForSequenceClassification

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.errors import RunError
from llm_rlhf.methods.best_of_n import Sources
from llm_rlhf.models.encoding import encode_prompts
from llm_rlhf.models.inference import reply_of
from llm_rlhf.recipe.loading import steps_for
from llm_rlhf.recipe.sections import BestOfNOptions, OnlineOptions
from llm_rlhf.reward.loading import Loading, load_whole
from llm_rlhf.run_folder import read_json, write_json


def length(completions: list[Any], thought: list[str], **kwargs: Any) -> list[float]:
    assert thought == [""] * len(completions)
    return [float(len(text[0]["content"])) for text in completions]


def said(trainer: Any, ids: list[list[int]]) -> list[Any]:
    texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
    return [[{"role": "assistant", "content": text}] for text in texts]


def rows_of(count: int = 8) -> list[dict[str, Any]]:
    return [{"prompt": asked, "objective": "helpful"} for asked in ASKED[:count]]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("names", "functions", "weighed"),
    [
        (["joint"], [], {}),
        (["helpful", "harmless"], [length], {"reward_weights": [0.3, 0.7, 0.01]}),
        (["joint-0", "joint-1"], [], {"score_combination": "mean_minus_spread", "score_spread_coef": 0.5}),
        ([], [length], {}),
    ],
)
def test_a_reply_has_the_score_that_ppo_gives_it(
    kind, names, functions, weighed, base_folder, tokenizer, tmp_path
) -> None:
    ids = responses_of(tokenizer.eos_token_id)
    adapters = {name: random_reward_adapter(base_folder, tmp_path / name, i) for i, name in enumerate(names)}
    ppo = make_trainer(base_folder, tmp_path, adapters or None, reward_funcs=functions or None, **weighed)
    fixed_responses(ppo, ids)
    (batch,) = rollout(ppo)
    other = make(kind, base_folder, tmp_path, adapters, tuple(functions), OnlineOptions(**weighed))
    found = other.score(rows_of(), ASKED, said(other, ids), ids)
    torch.testing.assert_close(found, batch.raw_scores, atol=1e-5, rtol=1e-5)  # rows are padded to other widths
    assert found.std() > 0


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_reply_cut_off_loses_the_penalty_and_one_column_is_returned(kind, base_folder, tokenizer, tmp_path) -> None:
    """The odd ones of `responses_of` do not stop by themselves."""
    ids = responses_of(tokenizer.eos_token_id)
    trainer = make(kind, base_folder, tmp_path, functions=(length,), scoring=OnlineOptions(missing_eos_penalty=3.0))
    paid = trainer._calculate_rewards(rows_of(), ASKED, said(trainer, ids), ids)
    expected = [len(text[0]["content"]) - 3.0 * (i % 2) for i, text in enumerate(said(trainer, ids))]
    assert paid.squeeze(1).tolist() == expected
    assert trainer.reward_func_names == ["score"]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_reply_has_one_score_whatever_dropout_its_reward_adapter_and_the_base_were_made_with(
    kind, base_folder, tokenizer, tmp_path
) -> None:
    """A finished reward adapter from elsewhere has some, mostly; TRL samples and scores in training mode."""
    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    write_json(base / "config.json", read_json(base / "config.json") | {"attention_dropout": 0.5})
    reward = random_reward_adapter(base, tmp_path / "joint")
    known = read_json(reward / "adapter_config.json")
    write_json(reward / "adapter_config.json", known | {"lora_dropout": 0.5})
    ids = responses_of(tokenizer.eos_token_id)
    trainer = make(kind, base, tmp_path, {"joint": reward})
    trainer.model.train()
    first, second = (trainer.score(rows_of(), ASKED, said(trainer, ids), ids) for _ in range(2))
    assert torch.equal(first, second)
    ppo = make_trainer(base, tmp_path, {"joint": reward})
    fixed_responses(ppo, ids)
    torch.testing.assert_close(first, rollout(ppo)[0].raw_scores, atol=1e-5, rtol=1e-5)  # as above


def test_prompts_are_encoded_as_every_stage_encodes_them(base_folder, tokenizer, tmp_path) -> None:
    """Special tokens that somebody typed are text, which TRL would read as the tokens they name."""
    asked = [*ASKED, [{"role": "user", "content": "say <|eos|>"}]]
    found = make("grpo", base_folder, tmp_path, functions=(length,))._tokenize_prompts(asked)[0]
    assert found == encode_prompts(tokenizer, asked)
    assert tokenizer.eos_token_id not in found[-1]


def test_a_model_of_its_own_gives_a_reply_one_score_in_every_method(base_folder, tokenizer, tmp_path) -> None:
    """By TRL's code in GRPO (and in PPO), by RewardModel in best of n; of replies that stopped by themselves."""
    torch.manual_seed(5)
    whole = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    whole.config.pad_token_id = tokenizer.pad_token_id
    for left in (whole, tokenizer):
        left.save_pretrained(tmp_path / "whole")
    loaded = load_whole(tmp_path / "whole", None, Loading(dtype="float32"))
    trainer = make("grpo", base_folder, tmp_path, functions=(loaded.model,), tokenizers=(loaded.tokenizer,))
    ids, asked = responses_of(tokenizer.eos_token_id)[::2], ASKED[::2]
    online = trainer.score([{"prompt": p, "objective": "helpful"} for p in asked], asked, said(trainer, ids), ids)
    sources = Sources({}, [str(tmp_path / "whole")], BestOfNOptions(), seed=0, dtype="float32")
    prompts = [Prompt(messages, "helpful", Origin("here", i)) for i, messages in enumerate(asked)]
    replies = [
        reply_of(tokenizer, prompt_ids, reply_ids, [tokenizer.eos_token_id])
        for prompt_ids, reply_ids in zip(encode_prompts(tokenizer, asked), ids, strict=True)
    ]
    picked = sources.score(None, tokenizer, prompts, replies, 8)
    torch.testing.assert_close(online, picked, atol=1e-5, rtol=1e-5)
    assert online.std() > 0
    assert sources.is_model == trainer.scores.is_model == [True]


def test_what_our_loop_does_not_know_is_left_to_the_parent(base_folder, tmp_path) -> None:
    """It draws from the whole distribution, whatever top_k or generation_kwargs say."""
    assert make("grpo", base_folder, tmp_path, functions=(length,))._sampler is not None
    for biased in ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"generation_kwargs": {"no_repeat_ngram_size": 2}}):
        assert make("rloo", base_folder, tmp_path, functions=(length,), **biased)._sampler is None


def test_a_score_that_is_no_number_stops_the_training_and_one_of_the_wrong_kind_names_the_function(
    base_folder, tokenizer, tmp_path
) -> None:
    def broken(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float("nan")] * len(completions)

    def short(completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.0]

    with pytest.raises(RunError, match="broken returned nan for row 0 of 8"):
        make("grpo", base_folder, tmp_path, functions=(broken,), max_steps=1).train()
    with pytest.raises(RunError, match="short returned 1 numbers for 8"):
        make("rloo", base_folder, tmp_path, functions=(short,), max_steps=1).train()


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_replies_are_the_policys_own_at_the_sections_temperature(kind, base_folder, tokenizer, tmp_path) -> None:
    """Near 0 they are the likeliest tokens of the policy, adapter and all; at 1 they change with the random numbers."""

    def sampled(trainer: Any, seed: int) -> Any:
        torch.manual_seed(seed)
        found = trainer._generate_single_turn(encode_prompts(tokenizer, ASKED), None, {}, *([2] * (kind == "grpo")))
        return found[0] if kind == "grpo" else found

    trainer = moved(make(kind, base_folder, tmp_path, functions=(length,), temperature=1e-4))
    for prompt_ids, reply in zip(encode_prompts(tokenizer, ASKED), sampled(trainer, 0), strict=True):
        ids = list(prompt_ids)
        while len(ids) < len(prompt_ids) + 6 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(int(trainer.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert reply == ids[len(prompt_ids) :]
    assert sampled(trainer, 1) == sampled(trainer, 0)
    warm = make(kind, base_folder, tmp_path, functions=(length,))
    assert sampled(warm, 1) != sampled(warm, 0) == sampled(warm, 0)


def test_a_saved_policy_is_the_policys_adapter_and_nothing_else(base_folder, reward_folder, tmp_path) -> None:
    trainer = moved(make("grpo", base_folder, tmp_path, {"joint": reward_folder}))
    trainer.save_adapter(tmp_path / "policy")
    assert not [path for path in (tmp_path / "policy").iterdir() if path.is_dir()]
    saved = load_peft_weights(str(tmp_path / "policy"), device="cpu")
    own = get_peft_model_state_dict(trainer.model, adapter_name="default")
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in own.items())
    assert any(weight.abs().sum() > 0 for name, weight in saved.items() if "lora_B" in name)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    moved(trainer)
    trainer._load_from_checkpoint(str(tmp_path / "policy"))
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_policy_moves_and_nothing_else(kind, base_folder, reward_folder, tmp_path) -> None:
    """The reference is read with the adapters off between the steps, and the reward adapter beside the policy's."""
    trainer = make(kind, base_folder, tmp_path, {"joint": reward_folder}, max_steps=3, beta=0.1, logging_steps=1)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".default." not in name), name
        assert parameter.requires_grad == (".default." in name), name
    logged = [line for line in trainer.state.log_history if "reward" in line]
    assert logged[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # a fresh adapter adds nothing
    assert logged[-1]["kl"] != logged[0]["kl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "episodes", "steps", "sampled"),
    [
        # Four rollouts of 4 replies an epoch, three of them a step: steps of 3 and 1, then 3 more.
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "steps_per_generation": 1}, 24, 3, 28),
        # Two rollouts of 8 replies an epoch, of two micro-batches read twice, a step each: 8 steps an epoch.
        ({"per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2}, 20, 12, 24),
    ],
)
def test_so_many_replies_are_sampled_whatever_an_epochs_last_step_takes(
    options, episodes, steps, sampled, base_folder, tmp_path
) -> None:
    seen: list[int] = []

    def count(completions: list[Any], **kwargs: Any) -> list[float]:
        seen.append(len(completions))
        return [float(i) for i in range(len(completions))]

    trainer = make("grpo", base_folder, tmp_path, functions=(count,), **options)
    assert steps_for(trainer.args, episodes, 8) == steps
    trainer.args.max_steps = steps
    trainer.train()
    assert sum(seen) == sampled >= episodes
