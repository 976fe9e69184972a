"""That each number PPO computes, and each option it is given, gets to the place it is meant for.

Every option under test has another value than its neighbours, so that one taken for another shows.
"""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from ppo_helpers import PROMPTS, fixed_responses, gradients, make_trainer, responses_of, rollout, zero_values
from transformers import AutoModelForCausalLM

from llm_rlhf.models import roles
from llm_rlhf.ppo.rollout import MicroBatch
from llm_rlhf.ppo.scores import ScoreMoments
from llm_rlhf.ppo.trainer import OVER_TOKENS, PPOTrainer

ASKED = Dataset.from_list([{"prompt": [{"role": "user", "content": f"tell {i}"}]} for i in range(4)])


@pytest.fixture
def eos(tokenizer) -> int:
    return tokenizer.eos_token_id


def length(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def logged(trainer: PPOTrainer) -> dict[str, float]:
    """The newest number of every training metric."""
    found = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return found | {name: found[name] / found["tokens"] for name in OVER_TOKENS if "tokens" in found}


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_invariant_03_near_temperature_zero_the_likeliest_tokens_are_sampled(base_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, None, reward_funcs=[length], temperature=1e-3)
    assert trainer._sampler is not None
    (batch,) = rollout(trainer)
    mask = batch.response_mask
    R = mask.size(1)
    with torch.no_grad():
        logits = trainer.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask,
            position_ids=roles.position_ids(batch.attention_mask),
        ).logits  # fmt: skip
    likeliest = logits[:, -R - 1 : -1].argmax(-1)
    assert torch.equal(likeliest[mask], batch.input_ids[:, -R:][mask])


@pytest.mark.parametrize("tiled", [True, False])
def test_invariant_03_a_copied_reference_is_read_at_the_sampling_temperature(
    base_folder, tmp_path, eos, monkeypatch, tiled
) -> None:
    if not tiled:
        monkeypatch.setattr(roles, "check_logits", lambda *_: False)  # TRL's fused head
    trainer = make_trainer(
        base_folder, tmp_path, None, lora=False, perturb=False, reward_funcs=[length], temperature=0.6
    )
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    assert torch.equal(batch.ref_logprobs, batch.old_logprobs)  # a policy that has not moved from its copy


# ---- the objective -------------------------------------------------------------------------------------------------


def test_invariant_09_the_logged_rlhf_reward_is_what_a_response_is_paid(
    base_folder, reward_folder, tmp_path, eos
) -> None:
    """With gamma and lambda 1 and values of 0, the return of the first token is all the response is paid."""
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, kl_coef=0.3, gamma=1.0, lam=1.0, missing_eos_penalty=2.0
    )
    zero_values(trainer)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    kl = (batch.old_logprobs - batch.ref_logprobs)[batch.response_mask].sum().item() / 8
    assert abs(kl) > 0.01
    expected = batch.raw_scores.mean().item() - 2.0 * 4 / 8 - 0.3 * kl  # four of eight do not stop
    found = logged(trainer)["objective/rlhf_reward"]
    assert found == pytest.approx(expected, abs=1e-5)  # fp32 sums of numbers of order 1 in another order
    assert found == pytest.approx(batch.returns[:, 0].mean().item(), abs=1e-5)


def test_invariant_11_evaluation_does_not_feed_the_score_moments(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, score_normalization="whiten", eval_dataset=ASKED,
        per_device_eval_batch_size=4,
    )  # fmt: skip
    fixed_responses(trainer, responses_of(eos))
    rollout(trainer)
    before = trainer.score_moments.state_dict()
    assert before["all"]["count"] == 8
    fixed_responses(trainer, responses_of(eos, rows=4))
    trainer.evaluate()
    assert trainer.score_moments.state_dict() == before


@pytest.mark.parametrize(("cliprange", "cliprange_value"), [(0.1, 0.3), (0.3, 0.05)])
def test_invariant_13_policy_and_value_are_each_clipped_by_their_own_range(
    base_folder, reward_folder, tmp_path, eos, cliprange, cliprange_value
) -> None:
    """Old log-probabilities lowered by .2 make every ratio e^.2 = 1.22; a raised bias puts values .2 above the old."""
    trainer = make_trainer(base_folder, tmp_path, reward_folder, cliprange=cliprange, cliprange_value=cliprange_value)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    mask = batch.response_mask
    batch = replace(batch, old_logprobs=batch.old_logprobs - 0.2)
    trainer.base_model().value_head.bias.data.add_(0.2)
    trainer._step_sums = None
    gradients(trainer, [batch])
    trainer.finish_step()
    found, A, V, R = logged(trainer), *(getattr(batch, n)[mask] for n in ("advantages", "old_values", "returns"))
    policy = torch.maximum(-A * math.exp(0.2), -A * min(math.exp(0.2), 1 + cliprange)).mean().item()
    value = torch.maximum((V + 0.2 - R) ** 2, (V + min(0.2, cliprange_value) - R) ** 2).mean().item() / 2
    assert found["loss/policy"] == pytest.approx(policy, abs=1e-5)  # fp32 sums of numbers of order 1
    assert found["loss/value"] == pytest.approx(value, rel=1e-5)


# ---- what is logged ------------------------------------------------------------------------------------------------


def test_every_number_logged_of_a_rollout_is_what_its_name_says(base_folder, reward_folder, tmp_path, eos) -> None:
    """From the token tensors of four micro-batches, response by response, in double precision."""
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, reward_funcs=[length], reward_weights=[1.0, 0.1], kl_coef=0.3,
        missing_eos_penalty=2.0, per_device_train_batch_size=2, num_mini_batches=4,
    )  # fmt: skip
    fixed_responses(trainer, responses_of(eos))
    batches = rollout(trainer)
    assert len(batches) == 4

    def of_tokens(name: str) -> list[torch.Tensor]:
        return [row[m].double() for b in batches for row, m in zip(getattr(b, name), b.response_mask, strict=True)]

    def of_rows(name: str) -> torch.Tensor:
        return torch.cat([getattr(b, name) for b in batches]).double()

    logs = [old - ref for old, ref in zip(of_tokens("old_logprobs"), of_tokens("ref_logprobs"), strict=True)]
    tokens, scores = sum(map(len, logs)), of_rows("raw_scores")
    kl = torch.stack([x.sum() for x in logs])
    returns, values = (torch.cat(of_tokens(name)) for name in ("returns", "old_values"))
    penalty = 2.0 * (~of_rows("stopped").bool()).double()
    expected = {
        "objective/scores": scores.mean(),
        "objective/scores_std": scores.std(),
        "objective/kl": kl.mean(),
        "objective/kl_per_token": kl.sum() / tokens,
        "objective/sqrt_kl": kl.mean().sqrt(),
        "objective/kl_k3": sum((torch.expm1(-x) + x).sum() for x in logs) / 8,
        "objective/kl_coef": 0.3,
        "objective/entropy": torch.cat(of_tokens("entropies")).mean(),
        "objective/rlhf_reward": (scores - penalty - 0.3 * kl).mean(),
        "objective/rlhf_reward_rms": ((scores - penalty - 0.3 * kl) ** 2).mean().sqrt(),
        "val/rms": (values**2).mean().sqrt(),
        "response_length": tokens / 8,
        "eos_rate": 0.5,
        "scores/reward": torch.cat([b.source_scores["reward"] for b in batches]).mean(),
        "scores/length": tokens / 8,
        "val/explained_variance": 1 - (returns - values).var() / returns.var(),
    }
    found = logged(trainer)
    assert kl.mean() > 0.01
    assert expected.keys() == found.keys() - {"num_tokens"}
    for name, number in expected.items():
        assert found[name] == pytest.approx(float(number), abs=1e-5), name  # fp32 sums of numbers of order 1


def test_every_number_logged_of_an_update_is_what_its_name_says(base_folder, reward_folder, tmp_path, eos) -> None:
    """Two micro-batches of one step, whose old log-probabilities and values are moved at random."""
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        cliprange=0.2, cliprange_value=0.1,
    )  # fmt: skip
    fixed_responses(trainer, responses_of(eos))
    batches = rollout(trainer)
    known: dict[str, list[torch.Tensor]] = {}
    changed: list[MicroBatch] = []
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        mask = batch.response_mask
        moves = torch.randn(2, *mask.shape, generator=generator) * 0.3
        batch = replace(batch, old_logprobs=batch.old_logprobs - moves[0], old_values=batch.old_values - moves[1])
        changed.append(batch)
        names = ("advantages", "old_values", "returns")
        for name, x in zip(("log_ratio", "moved", *names), (*moves, *(getattr(batch, n) for n in names)), strict=True):
            known.setdefault(name, []).append(x[mask].double())
    gradients(trainer, changed)
    trainer.finish_step()
    log_ratio, moved, A, V, R = (torch.cat(parts) for parts in known.values())
    ratio = log_ratio.exp()
    clipped = ratio.clamp(0.8, 1.2)
    far, near = (V + moved - R) ** 2, (V + moved.clamp(-0.1, 0.1) - R) ** 2
    expected = {
        "loss/policy": torch.maximum(-A * ratio, -A * clipped).mean(),
        "loss/value": torch.maximum(far, near).mean() / 2,
        "policy/approxkl": (log_ratio**2).mean() / 2,
        "policy/clamped": 0.0,
        "policy/clipfrac": (-A * clipped > -A * ratio).double().mean(),
        "policy/ratio": ratio.mean(),
        "policy/skipped": 0.0,
        "val/clipfrac": (near > far).double().mean(),
    }
    found = logged(trainer)
    assert 0.1 < expected["policy/clipfrac"] < 0.4
    assert 0.1 < expected["val/clipfrac"] < 0.9
    assert expected.keys() <= found.keys()
    for name, number in expected.items():
        assert found[name] == pytest.approx(float(number), abs=1e-5), name  # fp32 sums of numbers of order 1


@pytest.mark.parametrize("every", [1, 2, 4])
def test_steps_are_logged_as_means_over_their_own_tokens(base_folder, reward_folder, tmp_path, eos, every) -> None:
    """Mini-batches and rollouts of other numbers of tokens: the first ratio is 1; several steps weigh by tokens."""
    told = [{"input_ids": [*range(40, 43 + i)], "assistant_masks": [0] + [1] * (2 + i)} for i in range(11)]
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, per_device_train_batch_size=4, num_mini_batches=2, num_ppo_epochs=1,
        total_episodes=16, logging_steps=every, learning_rate=1e-3, shuffle_dataset=False,
        ptx_dataset=Dataset.from_list(told), ptx_coef=0.5,
    )  # fmt: skip
    known: list[dict[str, float]] = []
    made: list[MicroBatch] = []
    finish, prepare = trainer.finish_step, trainer._rollout

    def roll_out(inputs: Any) -> Any:
        rows = responses_of(eos)
        fixed_responses(trainer, rows if known else [row * 3 for row in rows])
        batches = prepare(inputs)
        made.extend(batches)
        return batches

    def note_and_finish() -> bool:
        known.append(dict(zip(trainer._step_names, trainer._step_sums.tolist(), strict=True)))
        return finish()

    trainer._rollout, trainer.finish_step = roll_out, note_and_finish
    trainer.train()
    rows = [row for row in trainer.state.log_history if "policy/ratio" in row]
    assert not {"tokens", "ptx_tokens"} & rows[0].keys()
    assert len({sums["tokens"] for sums in known}) == len(known) == 4
    assert len({sums["ptx_tokens"] for sums in known}) > 1
    assert [sums["tokens"] for sums in known] == [batch.response_mask.sum() for batch in made]
    assert [sums["ptx_tokens"] for sums in known] == [batch.demonstrations.mask.sum() for batch in made]
    if every == 1:
        assert rows[0]["policy/ratio"] == 1.0  # nothing has moved yet
        assert rows[0]["policy/approxkl"] == 0.0
    for row, start in zip(rows, range(0, 4, every), strict=True):
        steps = known[start : start + every]
        for names, counted in ((OVER_TOKENS, "tokens"), (["loss/ptx"], "ptx_tokens")):
            for name in names:
                mean = sum(sums[name] for sums in steps) / sum(sums[counted] for sums in steps)
                assert row[name] == pytest.approx(mean, rel=1e-6, abs=1e-12), name  # the same few numbers' quotient
    assert rows[-1]["policy/approxkl"] > 0


# ---- the update ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_invariant_12_training_takes_the_same_steps_however_a_mini_batch_is_cut(
    base_folder, reward_folder, tmp_path, eos
) -> None:
    """Plain gradient descent, unclipped: Adam and the clip would hide a loss that is wrong by a factor."""
    ends = []
    for size, accumulation, budget in ((4, 1, None), (2, 2, None), (1, 4, None), (4, 1, 40)):
        trainer = make_trainer(
            base_folder, tmp_path, reward_folder, per_device_train_batch_size=size, num_mini_batches=2,
            gradient_accumulation_steps=accumulation, micro_batch_tokens=budget, num_ppo_epochs=1, total_episodes=8,
            optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=1e9, shuffle_dataset=False,
        )  # fmt: skip
        fixed_responses(trainer, responses_of(eos))
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        assert trainer.state.global_step == 2
        assert len(trainer._micro_batches) == 2 * accumulation if budget is None else len(trainer._micro_batches) > 2
        after = dict(trainer.model.named_parameters())
        ends.append({n: (p - after[n].detach()) / 0.1 for n, p in before.items()})
    assert max(moved.abs().max() for moved in ends[0].values()) > 0.1
    for moved in ends[1:]:
        for name, expected in ends[0].items():
            # Other padded widths move log-probabilities by up to 7e-6 in fp32, as in the gradients' own test; weights
            # near 1 round a step of .1 to 6e-8, which is 6e-7 of a gradient.
            torch.testing.assert_close(moved[name], expected, rtol=2e-4, atol=2e-5, msg=name)


def test_invariant_15_the_guard_is_given_means_over_the_steps_own_tokens(
    base_folder, reward_folder, tmp_path, eos
) -> None:
    """Mini-batches of 4 and of 24 tokens, whose every ratio is e^.2: the guard sees that, and half of .2 squared."""
    trainer = make_trainer(base_folder, tmp_path, reward_folder, per_device_train_batch_size=4, num_mini_batches=2)
    fixed_responses(trainer, [[eos]] * 4 + [[20, 30, 40, 50, 60, eos]] * 4)
    seen: list[tuple[float, float]] = []
    skips = trainer.guard.skips
    trainer.guard.skips = lambda ratio, kl: (seen.append((ratio, kl)), skips(ratio, kl))[1]
    batches = rollout(trainer)
    assert [int(batch.response_mask.sum()) for batch in batches] == [4, 24]
    for batch in batches:
        gradients(trainer, [replace(batch, old_logprobs=batch.old_logprobs - 0.2)])
        trainer.finish_step()
    # fp32: log-probabilities of order 5 are rounded to 5e-7, a squared .2 of them to 2e-7.
    assert [ratio for ratio, _ in seen] == pytest.approx([math.exp(0.2)] * 2, abs=1e-5)
    assert [kl for _, kl in seen] == pytest.approx([0.02] * 2, abs=1e-6)


@pytest.mark.parametrize("over", [True, False])
def test_invariant_15_the_kl_limit_is_in_nats_per_response(base_folder, reward_folder, tmp_path, eos, over) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    per_response = batch.sequence_kl.mean().item()
    assert per_response > 0
    assert batch.response_mask.sum() > 2 * 8  # a token's share is less than half of it
    trainer.args.kl_limit = per_response * (0.5 if over else 1.5)
    rollout(trainer)
    assert (trainer.guard.rest_is_skipped, trainer.control.should_training_stop) == (over, over)


# ---- what is learned from ------------------------------------------------------------------------------------------


def train_and_note(trainer: PPOTrainer) -> list[tuple[list[str], list[MicroBatch]]]:
    """Train; of each rollout the prompts' words, and its micro-batches."""
    seen: list[tuple[list[str], list[MicroBatch]]] = []
    make = trainer._rollout

    def make_and_note(inputs):
        batches = make(inputs)
        seen.append(([row["prompt"][0]["content"] for row in inputs], batches))
        return batches

    trainer._rollout = make_and_note
    trainer.train()
    return seen


DEMONSTRATIONS = Dataset.from_list([{"input_ids": [20 + i, 30, 40, 50 + i]} for i in range(40)])


@pytest.mark.slow
def test_demonstrations_are_drawn_anew_for_each_rollout(base_folder, reward_folder, tmp_path) -> None:
    found = []
    for seed in (0, 0, 1):
        trainer = make_trainer(
            base_folder, tmp_path, reward_folder, ptx_coef=0.5, ptx_dataset=DEMONSTRATIONS, total_episodes=24,
            num_ppo_epochs=1, seed=seed,
        )  # fmt: skip
        found.append([[b.demonstrations.input_ids.tolist() for b in bs] for _, bs in train_and_note(trainer)])
    first, again, other = found
    assert first == again
    drawn = [tuple(sorted(row[0] for row in batches[0])) for batches in (*first, *other)]
    assert len(set(drawn)) == 6  # eight of forty: the same eight by chance once in millions


def test_demonstrations_are_drawn_anew_for_each_micro_batch(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, ptx_coef=0.5, ptx_dataset=DEMONSTRATIONS, per_device_train_batch_size=2,
        num_mini_batches=4,
    )  # fmt: skip
    fixed_responses(trainer, responses_of(eos))
    drawn = [tuple(batch.demonstrations.input_ids[:, 0].tolist()) for batch in rollout(trainer)]
    assert len(drawn) == 4
    assert len(set(drawn)) > 1  # two of forty, four times


def test_a_token_budget_counts_the_demonstrations_too(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, ptx_coef=0.5, ptx_dataset=DEMONSTRATIONS, micro_batch_tokens=80
    )
    batches = rollout(trainer)
    assert max(len(batch.rows) for batch in batches) > 1
    for batch in batches:
        demonstrated = batch.demonstrations.input_ids.numel()
        assert batch.input_ids.numel() + demonstrated <= 80 or len(batch.rows) == 1


def test_demonstrations_are_not_learned_in_the_value_warm_up(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, ptx_coef=0.5, ptx_dataset=DEMONSTRATIONS, value_warmup_rollouts=1
    )
    fixed_responses(trainer, responses_of(eos))
    _, found = gradients(trainer, rollout(trainer))
    assert all(g.abs().sum() == 0 for n, g in found.items() if ".default." in n)
    trainer._step = trainer.args.steps_per_generation * trainer.num_iterations  # the warm-up's rollout is used up
    _, found = gradients(trainer, rollout(trainer))
    assert all(g.abs().sum() > 0 for n, g in found.items() if ".default." in n)


def test_invariant_14_each_pass_takes_the_prompts_in_an_order_of_its_own(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, total_episodes=24, num_ppo_epochs=1)
    orders = [words for words, _ in train_and_note(trainer)]
    assert [sorted(order) for order in orders] == [sorted(PROMPTS)] * 3
    assert len({tuple(order) for order in orders}) == 3


def test_keep_best_without_lora_loads_the_snapshot(base_folder, tmp_path) -> None:
    def best_at_step_2(completions, **kwargs):
        return [float(trainer.state.global_step == 2) + 0.01 * i for i in range(len(completions))]

    trainer = make_trainer(
        base_folder, tmp_path, None, lora=False, perturb=False, reward_funcs=[best_at_step_2], eval_dataset=ASKED,
        eval_rollouts=1, per_device_eval_batch_size=4, keep="best", total_episodes=16, num_ppo_epochs=2,
    )  # fmt: skip
    stale = {"step": 3, "scores": 99.0, "heldout": None, "kl": 0.0, "response_length": 1.0}  # of an earlier training
    (tmp_path / "snapshots.jsonl").write_text(json.dumps(stale) + "\n")
    trainer.train()
    assert trainer.state.global_step == 4
    assert [row["step"] for row in trainer.snapshots.rows()] == [0, 2, 4]
    of_step = {
        step: AutoModelForCausalLM.from_pretrained(tmp_path / "snapshots" / f"step-{step}").state_dict()
        for step in (2, 4)
    }
    kept = {n: w for n, w in trainer.model.state_dict().items() if not n.startswith("value_head")}
    assert all(torch.equal(w, of_step[2][n]) for n, w in kept.items())
    assert not all(torch.equal(w, of_step[4][n]) for n, w in kept.items())


def test_invariant_11_each_score_feeds_the_moments_of_its_own_objective(base_folder, tmp_path, eos) -> None:
    """Rows are grouped by length on the way, away from the prompts' order."""
    trainer = make_trainer(
        base_folder, tmp_path, None, reward_funcs=[length], per_device_train_batch_size=2, num_mini_batches=4,
        score_normalization="whiten",
    )  # fmt: skip
    trainer.score_moments = ScoreMoments(["helpful", "harmless"])
    asked = [("helpful", 6), ("harmless", 1), ("harmless", 2), ("helpful", 5), ("harmless", 1), ("helpful", 6),
             ("harmless", 2), ("helpful", 5)]  # fmt: skip
    fixed_responses(trainer, [[20 + t for t in range(n - 1)] + [eos] for _, n in asked])
    batches = trainer._rollout(
        [{"prompt": [{"role": "user", "content": p}], "objective": o} for p, (o, _) in zip(PROMPTS, asked, strict=True)]
    )
    assert [i for batch in batches for i in batch.rows] != list(range(8))
    means = {name: moments["mean"] for name, moments in trainer.score_moments.state_dict().items()}
    assert means == {"helpful": 5.5, "harmless": 1.5}
    assert logged(trainer)["objective/scores"] == 3.5  # as the function gave them
    for batch in batches:  # each objective's scores are half a point off its mean
        assert batch.scores.abs().tolist() == pytest.approx([0.75**0.5] * len(batch.rows), abs=1e-6)


def test_invariant_08_evaluation_knows_the_score_and_what_is_paid_of_it(base_folder, tmp_path, eos) -> None:
    """Responses of one to four tokens, scored by length; every second one is cut off. Previews pick by what is paid."""
    trainer = make_trainer(
        base_folder, tmp_path, None, reward_funcs=[length], missing_eos_penalty=2.0, eval_dataset=ASKED,
        per_device_eval_batch_size=4,
    )  # fmt: skip
    fixed_responses(trainer, responses_of(eos, rows=4))
    trainer.evaluate()
    found = sorted((row.score, row.paid) for _, row in trainer._eval_rows)
    assert found == [(1, 1), (2, 2 - 2), (3, 3), (4, 4 - 2)]
