"""What goes wrong in training itself: rewards that say nothing, limits, explosion, collapse, reward hacking."""

import json
import math
from typing import Any

import pytest
import torch
from method_helpers import make
from ppo_helpers import fixed_responses, make_trainer, responses_of

from llm_rlhf.evaluation.report.alarms import alarm_lines
from llm_rlhf.evaluation.report.watch_section import watch_alarms
from llm_rlhf.ppo import objectives
from llm_rlhf.ppo.alarms import TrainingAlarms
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.statistics.intervals import Estimate


def seen(alarms: TrainingAlarms, step: int, values: float, rewards: float, entropy: float) -> list[dict[str, Any]]:
    return alarms.see(step, {"val/rms": values, "objective/rlhf_reward_rms": rewards, "objective/entropy": entropy})


def test_fault_31_values_that_explode_are_told_once_and_again_when_they_no_longer_do(tmp_path) -> None:
    """Ten times the largest rewards yet, which were 2: over 20."""
    alarms = TrainingAlarms(tmp_path / "alarms.json", 10.0, None)
    assert seen(alarms, 0, values=0.0, rewards=2.0, entropy=1.0) == []
    assert seen(alarms, 4, values=19.9, rewards=0.5, entropy=1.0) == []
    (told,) = seen(alarms, 8, values=20.1, rewards=0.5, entropy=1.0)
    assert told["text"].startswith("PPO's values have exploded: their root mean square is 20.1, where no rollout's")
    assert "rewards came to more than 2 (ppo.value_alarm is 10, optimizer step 8)" in told["text"]
    assert seen(alarms, 12, values=300.0, rewards=0.5, entropy=1.0) == []
    assert alarms.raised == ["values"]
    assert seen(alarms, 12, values=10.1, rewards=0.5, entropy=1.0) == []  # over from 10 on
    (over,) = seen(alarms, 16, values=3.0, rewards=0.5, entropy=1.0)
    assert not over["began"]
    assert alarms.raised == []


def test_fault_31_values_that_begin_large_must_grow_to_be_an_alarm(tmp_path) -> None:
    """A value adapter starts from the reward model's raw scores, whose scale is its own."""
    alarms = TrainingAlarms(tmp_path / "alarms.json", 10.0, None)
    seen(alarms, 0, values=30.0, rewards=1.0, entropy=1.0)
    assert seen(alarms, 4, values=35.0, rewards=1.0, entropy=1.0) == []
    assert len(seen(alarms, 8, values=301.0, rewards=1.0, entropy=1.0)) == 1


def test_fault_32_an_entropy_that_collapses_is_told(tmp_path) -> None:
    alarms = TrainingAlarms(tmp_path / "alarms.json", None, 0.1)
    seen(alarms, 0, values=0.0, rewards=0.0, entropy=2.0)
    assert seen(alarms, 4, values=1e9, rewards=0.0, entropy=0.21) == []  # of values nothing is judged
    (told,) = seen(alarms, 8, values=0.0, rewards=0.0, entropy=0.19)
    assert seen(alarms, 12, values=0.0, rewards=0.0, entropy=0.39) == []  # over from 0.4 on
    assert [one["began"] for one in seen(alarms, 16, values=0.0, rewards=0.0, entropy=0.41)] == [False]
    assert "0.19 nats a token, 9.5 % of the first rollout's 2 (ppo.entropy_alarm is 0.1" in told["text"]
    off = TrainingAlarms(tmp_path / "alarms.json", None, None)
    seen(off, 0, values=0.0, rewards=0.0, entropy=2.0)
    assert seen(off, 4, values=1e9, rewards=0.0, entropy=0.0) == []


def test_alarms_go_on_from_what_a_checkpoint_holds(tmp_path) -> None:
    whole, resumed = (TrainingAlarms(tmp_path / name, 10.0, 0.1) for name in ("a", "b"))
    for alarms in (whole, resumed):
        seen(alarms, 0, values=1.0, rewards=1.0, entropy=2.0)
    state = json.loads(json.dumps(whole.state_dict()))
    fresh = TrainingAlarms(tmp_path / "c", 10.0, 0.1)
    fresh.load_state_dict(state)
    for alarms in (resumed, fresh):
        seen(alarms, 4, values=11.0, rewards=0.1, entropy=0.1)
    assert fresh.state_dict() == resumed.state_dict()
    assert fresh.raised == ["values", "entropy"]


@pytest.mark.parametrize("key", ["value_alarm", "entropy_alarm"])
def test_an_alarm_at_0_is_refused(key, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"{key} is 0; it must be over 0"):
        PPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=2, bf16=False, **{key: 0})


def constant(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [1.0] * len(completion_ids)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_fault_31_a_training_whose_values_explode_says_so_and_stops_where_asked(
    action, base_folder, tmp_path, capsys
) -> None:
    """The value head is blown up behind the first rollout, as a step that is far too large would."""
    trainer = make_trainer(
        base_folder, tmp_path, None, reward_funcs=[constant], total_episodes=24, alarm_action=action, logging_steps=1
    )
    rollouts: list[int] = []
    make_rollout = trainer._make_rollout

    def blown_up(inputs: Any) -> Any:
        if rollouts:
            for parameter in trainer.base_model().value_head.parameters():
                parameter.data.fill_(100.0)
        rollouts.append(trainer.state.global_step)
        return make_rollout(inputs)

    trainer._make_rollout = blown_up
    trainer.train()
    out = capsys.readouterr().out
    assert out.count("warning: PPO's values have exploded") == 1
    assert ("alarm_action stops PPO at optimizer step 2" in out) == (action == "stop")
    assert rollouts == ([0, 2] if action == "stop" else [0, 2, 4])
    kept = json.loads((tmp_path / "alarms.json").read_text())
    assert kept["raised"] == ["values"]
    (line,) = watch_alarms({"training": kept})
    assert line.startswith("PPO's values have exploded")
    assert all(math.isfinite(line["loss/value"]) for line in trainer.state.log_history if "loss/value" in line)


@pytest.mark.slow
def test_fault_32_a_training_whose_entropy_collapses_says_so(base_folder, tmp_path, capsys) -> None:
    trainer = make_trainer(base_folder, tmp_path, None, reward_funcs=[constant], total_episodes=16, perturb=False)
    make_rollout, calls = trainer._make_rollout, iter(range(9))

    def collapsed(inputs: Any) -> Any:
        if next(calls) == 1:  # the output layer, which is the embedding's: near certain of one token
            trainer.base_model().get_input_embeddings().weight.data.mul_(50.0)
        return make_rollout(inputs)

    trainer._make_rollout = collapsed
    trainer.train()
    assert "warning: The policy's entropy has collapsed" in capsys.readouterr().out


def test_the_report_says_what_was_over_later() -> None:
    news = [
        {"what": "entropy", "began": True, "step": 4, "text": "The policy's entropy has collapsed."},
        {"what": "entropy", "began": False, "step": 8, "text": "Entropy: no alarm any more."},
    ]
    assert watch_alarms({"training": {"news": news, "raised": []}}) == [
        "The policy's entropy has collapsed. Later it was no longer so."
    ]
    assert watch_alarms({}) == []


@pytest.mark.slow
def test_fault_28_constant_rewards_teach_ppo_nothing_and_break_nothing(base_folder, tmp_path) -> None:
    """A reply's score is that of all others, and nothing else is paid: advantages come of its length alone, finite."""
    trainer = make_trainer(
        base_folder, tmp_path, None, reward_funcs=[constant], kl_coef=0.0, missing_eos_penalty=0.0, logging_steps=1,
        score_normalization="whiten", lam=1.0,
    )  # fmt: skip
    fixed_responses(trainer, responses_of(trainer.processing_class.eos_token_id))
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss/policy" in line]
    assert logged
    assert all(math.isfinite(value) for line in logged for value in line.values())
    assert logged[0]["loss/policy"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_fault_28_constant_rewards_leave_the_other_methods_where_they_are(kind, base_folder, tmp_path) -> None:
    """Every reply of a group has its mean: no advantage, and a gradient of exactly zero."""
    trainer = make(kind, base_folder, tmp_path, functions=(constant,), beta=0.0, max_steps=1, logging_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == 0.0


@pytest.mark.slow
def test_fault_29_a_kl_over_its_limit_stops_and_is_reported(base_folder, reward_folder, tmp_path, capsys) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, learning_rate=1e-2, kl_limit=1e-6, total_episodes=32, num_ppo_epochs=1
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer._after = trainer._after_rollout
    trainer._after_rollout = lambda metrics: trainer._after({**metrics, "objective/kl": 1.0})
    trainer.train()
    assert "over kl_limit (1e-06). The policy is the one before this rollout." in capsys.readouterr().out
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    (line,) = watch_alarms({"training": json.loads((tmp_path / "alarms.json").read_text())})
    assert line.startswith("PPO was stopped at optimizer step 0")
    assert "was over ppo.kl_limit (1e-06)" in line


@pytest.mark.slow
def test_fault_30_a_log_ratio_of_100_is_clamped_and_counted(base_folder, reward_folder, tmp_path) -> None:
    """At e^20 the loss is finite; the share of tokens is logged, and the step is skipped by ratio_limit."""
    loss, ratio = objectives.policy_loss(torch.tensor([[0.0]]), torch.tensor([[-100.0]]), torch.tensor([[-1.0]]), 0.2)
    assert ratio.item() == pytest.approx(math.exp(20), rel=1e-6)
    assert torch.isfinite(loss.loss).all()
    trainer = make_trainer(base_folder, tmp_path, reward_folder, total_episodes=8, num_ppo_epochs=1, logging_steps=1)
    make_rollout = trainer._make_rollout

    def far(inputs: Any) -> Any:
        batches = make_rollout(inputs)
        for batch in batches:
            batch.old_logprobs[:, 0] -= 100.0  # the first of six tokens of every response
        return batches

    trainer._make_rollout = far
    trainer.train()
    line = next(line for line in trainer.state.log_history if "policy/clamped" in line)
    assert 0 < line["policy/clamped"] <= 1
    assert line["policy/skipped"] == 1.0


def estimate(name: str, subject: str, value: float, low: float, high: float, reference: str | None) -> Estimate:
    return Estimate(name, subject, reference, "all", value, low, high, 200, "by hand")


def of_rewards(heldout: tuple[float, float, float]) -> list[Estimate]:
    return [
        estimate("reward_gain", "ppo", 1.0, 0.8, 1.2, "sft"),
        estimate("heldout_reward_gain", "ppo", *heldout, "sft"),
    ]


def test_fault_33_longer_replies_with_a_flat_heldout_reward_are_told() -> None:
    lengths = [estimate("response_length", who, n, n - 5, n + 5, None) for who, n in (("sft", 50.0), ("ppo", 90.0))]
    told = " ".join(alarm_lines([*of_rewards((0.0, -0.1, 0.1)), *lengths]))
    assert "The training reward rose by 1.00, but a gain of the held-out reward is not shown" in told
    assert "Replies grew from 50 to 90 tokens: part of the gain may be length." in told


def test_fault_34_a_training_reward_that_rises_while_the_heldout_one_falls_is_reward_hacking() -> None:
    (told,) = [line for line in alarm_lines(of_rewards((-0.5, -0.7, -0.3))) if line.startswith("Reward hacking")]
    assert "the training reward rose by 1.00 while the held-out reward fell by 0.50" in told
