"""Where memory runs out outside PPO: the micro-batch is taken in halves, with the same gradient, or one message."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from method_helpers import ASKED, make, moved
from peft import LoraConfig
from ppo_helpers import FULL, FindsMemoryFull
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, set_seed
from trl import RewardConfig

from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.errors import RunError
from llm_rlhf.models.decoding_loop import DecodingLoop
from llm_rlhf.recipe.sections import OnlineOptions, RewardOptions
from llm_rlhf.reward.trainer import encode_pairs
from llm_rlhf.stages.reward import _RewardTrainer


def small_device(trainer: Any, rows: int, where: str) -> list[int]:
    """Memory is full over so many rows, where gradients are wanted (`forward`, `backward`), or not (`scoring`)."""
    tried: list[int] = []

    def limited(_module: Any, _args: Any, output: Any) -> Any:
        if torch.is_grad_enabled() != (where != "scoring"):
            return output
        tried.append(len(output))
        if len(output) <= rows:
            return output
        if where == "backward":
            return FindsMemoryFull.apply(output)
        raise torch.OutOfMemoryError(FULL)

    trainer.model.get_base_model().model.norm.register_forward_hook(limited)
    return tried


class Gradients(TrainerCallback):
    """Those of every optimizer step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.seen = trainer, []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = self.trainer.model.named_parameters()
        self.seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def reward_trainer(base: Path, folder: Path, options: RewardOptions, **config: Any) -> _RewardTrainer:
    tokenizer = AutoTokenizer.from_pretrained(base)
    words = ["yes", "no, not at all", "it may be so", "ask me again tomorrow"]
    pairs = [
        Preference(asked, words[i % 4], words[(i + 1) % 4], "helpful", Origin("here", i), margin=i / 4, confidence=0.9)
        for i, asked in enumerate(ASKED)
    ]
    set_seed(3)
    return _RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(base, num_labels=1),
        args=RewardConfig(
            output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", max_length=None, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True, seed=3, center_rewards_coefficient=0.1, **config,
        ),
        train_dataset=Dataset.from_list(encode_pairs(tokenizer, pairs, options)), processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["score"]),
        options=options,
    )  # fmt: skip


def started(kind: str, base: Path, reward: Path, folder: Path, **options: Any) -> Any:
    """A trainer of two optimizer steps of two micro-batches of four rows (pairs, for those that learn from pairs)."""
    common = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    if kind == "reward":
        return reward_trainer(base, folder, RewardOptions(), **common | options)
    if kind in ("grpo", "rloo"):
        common |= {"beta": 0.1, "num_iterations": 2, "learning_rate": 1e-3}
        weighing = OnlineOptions(missing_eos_penalty=0.5)
        return moved(make(kind, base, folder, {"joint": reward}, scoring=weighing, **common | options))
    return moved(make(kind, base, folder, **common | options))


CASES = [  # trainer, options, rows of a forward that fit
    ("reward", {}, 4),  # of two pairs
    ("best_of_n", {}, 2),
    ("dpo", {}, 4),
    ("dpo", {"loss_type": ["ipo", "apo_zero"], "loss_weights": [1.0, 0.5]}, 4),
    ("kto", {"loss_type": "apo_zero_unpaired"}, 2),
    ("rloo", {}, 2),
    *(("grpo", {"loss_type": loss}, 2) for loss in ("dapo", "grpo", "bnpo", "dr_grpo")),
]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("kind", "options", "fit"), CASES, ids=lambda of: of if isinstance(of, str) else None)
def test_fault_35_an_update_in_halves_has_the_same_gradient(
    kind, options, fit, where, base_folder, reward_folder, tmp_path, capsys
) -> None:
    found, logged = [], []
    for limit in (None, fit):
        trainer = started(kind, base_folder, reward_folder, tmp_path / str(limit), **options)
        gradients = Gradients(trainer)
        trainer.add_callback(gradients)
        tried = [] if limit is None else small_device(trainer, limit, where)
        trainer.train()
        found.append(gradients.seen)
        logged.append([line for line in trainer.state.log_history if "loss" in line])
    assert max(tried) > fit
    assert tried.count(max(tried)) == 1  # from then on it knows
    assert f"memory ran out in the update of {kind}, over 4 rows of" in capsys.readouterr().out
    assert len(found[0]) == len(found[1]) == 2
    for name, gradient in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], gradient, rtol=1e-4, atol=1e-6)  # sums in another order
    for whole, halved in zip(*logged, strict=True):
        assert halved["loss"] == pytest.approx(whole["loss"], rel=1e-3, abs=1e-6)
        assert halved.get("num_tokens") == whole.get("num_tokens")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("kto", {}, "kto estimates its KL over the whole micro-batch"),
        ("dpo", {"loss_type": ["aot"]}, "dpo.loss_type aot is not a mean over pairs"),
        ("reward", {"length_control": True}, "reward.length_control: residual follows whole micro-batches"),
    ],
)
def test_fault_35_what_cannot_be_halved_says_what_to_lower(
    kind, options, said, base_folder, reward_folder, tmp_path
) -> None:
    if kind == "reward":
        trainer: Any = reward_trainer(
            base_folder, tmp_path, RewardOptions(length_control="residual"), per_device_train_batch_size=4
        )
    else:
        trainer = started(kind, base_folder, reward_folder, tmp_path, **options)
    small_device(trainer, 2, "forward")
    with pytest.raises(RunError, match=said) as error:
        trainer.train()
    assert f"lower {kind}.per_device_train_batch_size and raise {kind}.gradient_accumulation_steps" in str(error.value)


@pytest.mark.parametrize("kind", ["best_of_n", "grpo"])
def test_fault_37_at_a_single_row_the_message_names_what_to_lower(kind, base_folder, reward_folder, tmp_path) -> None:
    trainer = started(kind, base_folder, reward_folder, tmp_path)
    small_device(trainer, 0, "backward")
    with pytest.raises(RunError, match=f"in the update of {kind}, at a single row of .* tokens; lower {kind}") as error:
        trainer.train()
    assert "model.context_length" in str(error.value)
    assert "`llm-rlhf plan` tells what fits" in str(error.value)
    assert FULL in str(error.value)


def test_fault_35_of_several_processes_the_message_says_why_none_goes_on(
    base_folder, reward_folder, tmp_path, monkeypatch
) -> None:
    trainer = started("dpo", base_folder, reward_folder, tmp_path)
    failed = torch.OutOfMemoryError(FULL)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    with pytest.raises(RunError, match="in one of several processes, which the others' gradients wait for; lower dpo"):
        trainer._check(failed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_fault_35_what_a_rollout_reads_is_read_in_halves(kind, base_folder, reward_folder, tmp_path, capsys) -> None:
    """Scores, and log-probabilities of the policy and of the reference; the update has all the memory it wants."""
    gradients = []
    for limit in (None, 2):
        trainer = started(kind, base_folder, reward_folder, tmp_path / str(limit), per_device_train_batch_size=4)
        gradients.append(Gradients(trainer))
        trainer.add_callback(gradients[-1])
        tried = [] if limit is None else small_device(trainer, limit, "scoring")
        trainer.train()
    assert tried.count(4) == 1  # from then on it knows
    assert set(tried) == {2, 4}
    said = capsys.readouterr().out
    assert f"memory ran out in scoring for {kind}, over 4 rows of" in said
    assert "in the update" not in said
    assert len(gradients[0].seen) == len(gradients[1].seen) == 2
    for whole, halved in zip(gradients[0].seen, gradients[1].seen, strict=True):
        for name, gradient in whole.items():
            # Products of half as many rows add up in another order; the second step starts from what these gave.
            torch.testing.assert_close(halved[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def limited(loop: Any, rows: int) -> Any:
    def decode(self: Any, model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(input_ids) > rows:
            raise torch.OutOfMemoryError(FULL)
        return loop(self, model, input_ids, *args, **kwargs)

    return decode


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_fault_36_a_rollout_of_another_method_is_split(
    kind, base_folder, reward_folder, tmp_path, capsys, monkeypatch
) -> None:
    """At temperature 0, so that it says the same however many rows are drawn together; eight replies a rollout."""
    found = []
    for limit in (None, 3):
        trainer = started(kind, base_folder, reward_folder, tmp_path / str(limit), per_device_train_batch_size=8,
                          gradient_accumulation_steps=1)  # fmt: skip
        trainer._sampler.temperature = 0.0
        if limit is not None:
            monkeypatch.setattr(DecodingLoop, "__call__", limited(DecodingLoop.__call__, limit))
        prompts = list(trainer._tokenize_prompts(ASKED)[0])
        rest = (None, {}, 2) if kind == "grpo" else (None, {})
        with torch.no_grad():
            replies = trainer._generate_single_turn(prompts, *rest)
        found.append(replies[0] if kind == "grpo" else replies)
    assert found[0] == found[1]
    assert f"memory ran out in sampling for {kind}, over 8 rows" in capsys.readouterr().out
