"""PPOConfig: TRL's old names laid over the online trainer's."""

import pytest

from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.kl import KLController


def config(tmp_path, **options) -> PPOConfig:
    return PPOConfig(output_dir=str(tmp_path), bf16=False, **options)


def test_names_are_mapped_onto_the_parents(tmp_path) -> None:
    c = config(
        tmp_path, kl_coef=0.1, num_ppo_epochs=3, num_mini_batches=2, gradient_accumulation_steps=4, response_length=7,
        cliprange=0.3, per_device_train_batch_size=5, total_episodes=81,
    )  # fmt: skip
    assert (c.beta, c.num_iterations, c.max_completion_length, c.epsilon) == (0.1, 3, 7, 0.3)
    assert c.steps_per_generation == 8
    assert c.generation_batch_size == 40  # 5 x 8
    assert c.max_steps == 3 * 3 * 2  # 81 responses are three rollouts of 40, each of 3 epochs of 2 steps
    assert c.logging_steps == 6  # once a rollout


def test_the_parents_names_work_too(tmp_path) -> None:
    c = config(tmp_path, beta=0.1, num_iterations=3, max_completion_length=7, epsilon=0.3, steps_per_generation=6)
    assert (c.kl_coef, c.num_ppo_epochs, c.response_length, c.cliprange, c.num_mini_batches) == (0.1, 3, 7, 0.3, 6)


def test_defaults(tmp_path) -> None:
    c = config(tmp_path)
    assert (c.kl_coef, c.num_ppo_epochs, c.response_length, c.cliprange, c.num_mini_batches) == (0.05, 2, 256, 0.2, 1)
    assert (c.num_generations, c.adam_epsilon, c.gamma, c.lam, c.value) == (1, 1e-5, 1.0, 0.95, "shared")


@pytest.mark.parametrize("size", [3, 5, 8])
def test_one_response_a_prompt_works_for_odd_rollouts(tmp_path, size) -> None:
    c = config(tmp_path, per_device_train_batch_size=size)
    assert (c.num_generations, c.generation_batch_size) == (1, size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coef": 0.1, "beta": 0.2}, "two names of one setting"),
        ({"num_ppo_epochs": 1, "num_iterations": 2}, "two names of one setting"),
        ({"response_length": 1, "max_completion_length": 2}, "two names of one setting"),
        ({"cliprange": 0.1, "epsilon": 0.2}, "two names of one setting"),
        ({"num_mini_batches": 2, "steps_per_generation": 2}, "both set the size"),
        ({"num_mini_batches": 2, "generation_batch_size": 16}, "both set the size"),
        ({"total_episodes": 8, "max_steps": 2}, "both say how long"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "multiple of"),
        ({"num_generations": 3}, "must divide"),
        ({"per_device_train_batch_size": 1}, "cannot be whitened"),
        ({"disable_dropout": False}, "dropout"),
        ({"mask_truncated_completions": True}, "missing_eos_penalty"),
        ({"normalize_advantages": True}, "always whitens"),
        ({"epsilon_high": 0.3}, "symmetric"),
        ({"router_aux_loss_coef": 0.1}, "balance of experts"),
        ({"kl_limit": 0.0}, "over 0"),
        ({"micro_batch_tokens": 9, "gradient_accumulation_steps": 2}, "both cut a mini-batch"),
        ({"eval_rollouts": 0}, "at least 1"),
        ({"score_combination": "maximum"}, "'weighted', 'minimum'"),
        ({"keep": "best"}, "nothing is evaluated"),
        ({"kl_coef": -1.0}, "at least 0"),
        ({"lam": 1.1}, "between 0 and 1"),
        ({"temperature": 0.0}, "over 0"),
        ({"kl_estimator": "k2"}, "'k1', 'k3'"),
        ({"torch_compile": True}, "torch_compile is not an option of PPO here.*model.compile"),
        ({"fp16": True}, "loss scaling cannot pass over the steps"),
        (
            {"old_logprobs": "rollout", "cache_implementation": "static"},
            "cache_implementation takes another loop to sample",
        ),
        ({"kl_estimator": "k3"}, "does not regularise when it is paid as a reward"),
    ],
)
def test_contradictions_are_refused(tmp_path, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_evaluation_and_checkpoints_fall_on_rollout_boundaries(tmp_path) -> None:
    c = config(tmp_path, num_ppo_epochs=2, num_mini_batches=3, eval_rollouts=5, save_strategy="steps", save_steps=100)
    assert c.steps_per_rollout == 6
    assert (c.eval_strategy, c.eval_steps) == ("steps", 30)
    assert c.save_steps == 102  # the next boundary
    share = config(tmp_path, num_ppo_epochs=2, num_mini_batches=2, max_steps=100, save_steps=0.1)
    assert share.save_steps == 12  # a tenth of 100 is 10; a rollout has 4


def test_the_adaptive_kl_moves_in_a_short_run_too(tmp_path) -> None:
    """The controller at its limit, 20 % over 1 / 20 of the run: kl_coef may grow by about exp(0.2 x 20) = 55 times."""
    args = config(tmp_path, adaptive_kl_target=1.0, total_episodes=3840, per_device_train_batch_size=64)
    assert args.adaptive_kl_horizon == 192
    controller = KLController(args.kl_coef, args.adaptive_kl_target, args.adaptive_kl_horizon)
    for _ in range(60):
        controller.update(2.0, 64)
    assert controller.value / args.kl_coef == pytest.approx((1 + 0.2 / 3) ** 60)
    given = config(tmp_path, adaptive_kl_horizon=500, total_episodes=3840, per_device_train_batch_size=64)
    assert given.adaptive_kl_horizon == 500
    long = config(tmp_path, total_episodes=1_000_000, per_device_train_batch_size=64)
    assert long.adaptive_kl_horizon == 10_000


@pytest.mark.parametrize("rollouts", [1, 2, 5, 40])
def test_however_short_the_run_the_adaptive_kl_stays_a_penalty(tmp_path, rollouts) -> None:
    """A KL of 0, as that of every first rollout, is far below any target: a fifth less at most."""
    args = config(tmp_path, adaptive_kl_target=6.0, total_episodes=64 * rollouts, per_device_train_batch_size=64)
    controller = KLController(args.kl_coef, args.adaptive_kl_target, args.adaptive_kl_horizon)
    controller.update(0.0, 64)
    assert controller.value == pytest.approx(args.kl_coef * (1 - 0.2 * min(1, 20 / rollouts)))


def test_a_horizon_by_which_one_rollout_could_end_the_penalty_is_refused(tmp_path) -> None:
    """1 - .2 n / h is 0 at h = n / 5: 12.8 of 64 responses."""
    with pytest.raises(ValueError, match=r"is 12, at most a fifth of a rollout's 64 replies: .*\(to 64 it moves"):
        config(tmp_path, adaptive_kl_target=6.0, adaptive_kl_horizon=12, per_device_train_batch_size=64)
    config(tmp_path, adaptive_kl_target=6.0, adaptive_kl_horizon=13, per_device_train_batch_size=64)
    config(tmp_path, adaptive_kl_horizon=12, per_device_train_batch_size=64)  # which steers nothing


def test_the_start_is_evaluated_where_training_is(tmp_path) -> None:
    assert config(tmp_path, eval_rollouts=1, per_device_train_batch_size=64).eval_on_start
    assert not config(tmp_path, per_device_train_batch_size=64).eval_on_start
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="side_guard_level"):
            config(tmp_path, side_guard_level=level, per_device_train_batch_size=64)
    with pytest.raises(ValueError, match="side_guard is 'loud'"):
        config(tmp_path, side_guard="loud", per_device_train_batch_size=64)
