"""PPO where memory runs out: it goes on in smaller pieces, and learns what it would have learned."""

import pytest
import torch
from ppo_helpers import FULL, FindsMemoryFull, fixed_responses, make_trainer, responses_of, rollout
from torch._dynamo.utils import counters

from llm_rlhf.errors import RunError
from llm_rlhf.models.compiled_layers import compile_layers

OPTIONS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_ppo_epochs": 2, "perturb": False,
           "total_episodes": 16}  # fmt: skip


def small_device(trainer, monkeypatch, rows: int, where: str) -> list[int]:
    """Let the model's joint call find memory full over so many rows: `scoring`, `forward` or `backward`."""
    base, tried = trainer.base_model(), []
    forward = base.forward

    def limited(*args, response_mask=None, **kwargs):
        if response_mask is None:
            return forward(*args, **kwargs)
        learns = torch.is_grad_enabled()
        if learns == (where != "scoring"):
            tried.append(len(response_mask))
        full = len(response_mask) > rows and learns == (where != "scoring")
        if full and where != "backward":
            raise torch.OutOfMemoryError(FULL)
        found = forward(*args, response_mask=response_mask, **kwargs)
        return found | {"logprobs": FindsMemoryFull.apply(found["logprobs"])} if full else found

    monkeypatch.setattr(base, "forward", limited)
    return tried


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.parametrize(
    ("where", "compiled"), [("scoring", False), ("forward", False), ("backward", False), ("backward", True)]
)
def test_fault_35_it_learns_the_same_in_halves(
    base_folder, reward_folder, tmp_path, monkeypatch, capsys, where, compiled
) -> None:
    """The second micro-batch of a step fails too, whose first one's gradients are then taken again."""
    start = None
    found = []
    for limit in (None, 3):
        trainer = make_trainer(base_folder, tmp_path, reward_folder, **OPTIONS)
        if compiled:
            compile_layers(trainer.model, backend="eager")
        start = weights(trainer)
        fixed_responses(trainer, responses_of(trainer.processing_class.eos_token_id))
        tried = small_device(trainer, monkeypatch, limit, where) if limit else []
        trainer.train()
        found.append((weights(trainer), [row for row in trainer.state.log_history if "loss/policy" in row]))
    assert trainer.state.global_step == 2 * 2
    assert tried[0] == 4
    assert max(tried[2:]) <= 3
    assert compiled == (counters["stats"]["unique_graphs"] > 0)
    name = "scoring a rollout" if where == "scoring" else "the update"
    assert f"memory ran out in {name}, over 4 rows" in capsys.readouterr().out
    for name, expected in found[0][0].items():
        moved = (expected - start[name]).abs().max()
        # AdamW makes steps of the learning rate out of gradients however small: of those near 0 rounding is a part
        assert (found[1][0][name] - expected).abs().max() <= 0.02 * moved, name
    for one, other in zip(found[0][1], found[1][1], strict=True):
        for metric in ("loss/policy", "loss/value", "policy/ratio", "policy/approxkl", "objective/kl"):
            assert one[metric] == pytest.approx(other[metric], abs=1e-5), metric  # float32, other batch sizes


@pytest.mark.slow
def test_the_first_ratio_is_exactly_1_in_pieces(base_folder, reward_folder, tmp_path, monkeypatch) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, num_ppo_epochs=1, total_episodes=8)
    trainer._update.tokens = 1  # rows go alone
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "policy/ratio" in row]
    assert row["policy/ratio"] == pytest.approx(1, abs=1e-6)  # a mean of ones
    assert row["policy/approxkl"] == pytest.approx(0, abs=1e-9)


def test_fault_37_one_row_that_does_not_fit_ends_the_run_with_the_keys_to_lower(
    base_folder, reward_folder, tmp_path, monkeypatch
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, **OPTIONS)
    small_device(trainer, monkeypatch, 0, "forward")
    with pytest.raises(RunError, match=r"ran out in the update, at a single row of \d+ tokens; lower ppo.response_len"):
        trainer.train()


@pytest.mark.parametrize("where", ["scoring", "reward function"])
def test_what_fails_while_a_rollout_is_made_is_not_taken_for_the_update(
    base_folder, reward_folder, tmp_path, monkeypatch, where
) -> None:
    def full(completions, **kwargs):
        raise torch.OutOfMemoryError(FULL)

    if where == "scoring":
        trainer = make_trainer(base_folder, tmp_path, reward_folder, **OPTIONS)
        small_device(trainer, monkeypatch, 0, "scoring")
    else:
        trainer = make_trainer(base_folder, tmp_path, None, reward_funcs=[full], **OPTIONS)
    told = "scoring a rollout, at a single row" if where == "scoring" else "reward function .* failed"
    with pytest.raises(RunError, match=told):
        trainer.train()


def test_fault_36_sampling_goes_on_in_halves(base_folder, reward_folder, tmp_path, monkeypatch) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    generate, tried = trainer._generate_part, []

    def limited(prompt_ids, *rest):
        tried.append(len(prompt_ids))
        if len(prompt_ids) > 4:
            raise torch.OutOfMemoryError(FULL)
        return generate(prompt_ids, *rest)

    monkeypatch.setattr(trainer, "_generate_part", limited)
    (batch,) = rollout(trainer)
    assert tried == [8, 4, 4]
    assert batch.rows == list(range(8))
