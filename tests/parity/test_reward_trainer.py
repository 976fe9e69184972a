"""PairTrainer against TRL's RewardTrainer, and its own additions against numpy, on a tiny model."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer

from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import RewardOptions
from llm_rlhf.reward.adapters import AdapterPlan
from llm_rlhf.reward.trainer import PairTrainer, encode_pairs
from llm_rlhf.stages import reward as reward_stage

SIDES = ("chosen", "rejected")
WORDS = ["yes", "no, not at all", "it may be so", "ask me again tomorrow", "quite", "I should think that it is so"]


def preferences(**fields: Any) -> list[Preference]:
    return [
        Preference([{"role": "user", "content": f"is it {i}?"}], WORDS[i % 6], WORDS[(i + 1) % 6], "helpful",
                   Origin("here", i), **{name: values[i] for name, values in fields.items() if values[i] is not None})
        for i in range(12)
    ]  # fmt: skip


def trainer(
    kind: type[RewardTrainer], base: Path, tokenizer: Any, rows: list[dict[str, Any]], folder: Path, **options: Any
) -> RewardTrainer:
    section, steps, batch = options.pop("section", RewardOptions()), options.pop("steps", 3), options.pop("batch", 4)
    config = RewardConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-2, seed=3,
        use_cpu=True, report_to="none", save_strategy="no", max_length=None, logging_steps=1,
        gradient_checkpointing=False, bf16=False, **options,
    )  # fmt: skip
    set_seed(3)
    return kind(
        model=AutoModelForSequenceClassification.from_pretrained(base, num_labels=1),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(tokenizer),
        peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["score"]),
        **({"options": section} if kind is PairTrainer else {}),
    )


def test_rows_of_like_length_come_together_where_asked(base_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Rows of a megabatch (12 batches here) are sorted by `length`: in a batch of 4 they differ by little.

    The twelve different rows have lengths from 25 to 40; shuffled, four of them differ by 10 and more on average.
    """
    rows = encode_pairs(tokenizer, preferences(), RewardOptions())
    assert [row["length"] for row in rows] == [max(len(row[f"{side}_ids"]) for side in SIDES) for row in rows]
    differences = {}
    for strategy in ("random", "group_by_length"):
        made = trainer(PairTrainer, base_folder, tokenizer, rows * 16, tmp_path, train_sampling_strategy=strategy)
        longest = [batch["attention_mask"].sum(1).reshape(2, -1).amax(0) for batch in made.get_train_dataloader()]
        assert sorted(torch.cat(longest).tolist()) == sorted(row["length"] for row in rows * 16)
        differences[strategy] = torch.stack([lengths.max() - lengths.min() for lengths in longest]).float().mean()
    assert differences["group_by_length"] < 3
    assert differences["random"] > 10


@pytest.mark.parametrize("options", [{}, {"center_rewards_coefficient": 0.1}])
@pytest.mark.parametrize("margins", [None, [0.5, None] * 6])
def test_without_our_options_the_weights_are_those_of_trl_to_the_bit(
    base_folder: Path, tokenizer: Any, tmp_path: Path, options: dict[str, Any], margins: list[Any] | None
) -> None:
    rows = encode_pairs(tokenizer, preferences(**({"margin": margins} if margins else {})), RewardOptions())
    assert ("margin" in rows[0]) == (margins is not None)
    weights = []
    for kind in (RewardTrainer, PairTrainer):
        made = trainer(kind, base_folder, tokenizer, rows, tmp_path / kind.__name__, **options)
        made.train()
        weights.append({n: p.detach() for n, p in made.model.named_parameters() if p.requires_grad})
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def one_batch(made: RewardTrainer) -> dict[str, Any]:
    made.model.eval()  # TRL counts tokens in training only
    return next(iter(made.get_train_dataloader()))


def test_margins_of_pairs_that_have_none_are_zero(base_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    rows = encode_pairs(tokenizer, preferences(margin=[1.5, None, None] * 4), RewardOptions())
    assert [row["margin"] for row in rows[:3]] == [1.5, 0.0, 0.0]


@pytest.mark.parametrize("control", ["none", "residual"])
def test_the_loss_against_numpy(base_folder: Path, tokenizer: Any, tmp_path: Path, control: Any) -> None:
    section = RewardOptions(label_smoothing=0.1, length_control=control)
    pairs = preferences(confidence=[1.0, 0.8, 0.6] * 4, margin=[0.5, None] * 6)
    rows = encode_pairs(tokenizer, pairs, section)
    made = trainer(PairTrainer, base_folder, tokenizer, rows, tmp_path, section=section, center_rewards_coefficient=0.2)
    assert isinstance(made, PairTrainer)
    made.length_weight = 0.9
    batch = one_batch(made)
    with torch.no_grad():
        loss = made.compute_loss(made.model, dict(batch)).item()
        ids, mask = batch["input_ids"], batch["attention_mask"]
        scores = made.model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).double().numpy()
    chosen, rejected = scores[:4], scores[4:]
    gap, confidence, margin = chosen - rejected, batch["confidence"].double().numpy(), batch["margin"].double().numpy()
    lengths = mask.sum(1).double().numpy()
    all_gaps = [len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows]
    x = np.tanh((lengths[:4] - lengths[4:]) / math.sqrt(np.mean(np.square(all_gaps))))
    odds = gap + (0.9 * x if control == "residual" else 0)
    expected = np.mean(
        confidence * np.log1p(np.exp(margin - odds)) + (1 - confidence) * np.log1p(np.exp(margin + odds))
    )
    expected += 0.2 * np.mean((chosen + rejected) ** 2)
    assert set(confidence.round(6)) <= {0.9, 0.74, 0.58}  # 1, 0.8 and 0.6 with a tenth of the labels wrong
    assert loss == pytest.approx(expected, rel=1e-5)  # float32 against float64


def test_the_length_weight_follows_the_labels(base_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Chosen is always longer here: the weight grows, and it is logged."""
    section = RewardOptions(length_control="residual")
    pairs = [
        Preference(p.prompt, *sorted((p.chosen, p.rejected), key=len, reverse=True), p.objective, p.origin)
        for p in preferences()
    ]
    made = trainer(
        PairTrainer, base_folder, tokenizer, encode_pairs(tokenizer, pairs, section), tmp_path, section=section
    )
    assert isinstance(made, PairTrainer)
    made.train()
    assert made.length_weight > 0.02
    logged = [line["length_weight"] for line in made.state.log_history if "length_weight" in line]
    assert logged == sorted(logged)
    assert logged[-1] == pytest.approx(made.length_weight)


@pytest.mark.slow
def test_residual_training_removes_most_of_a_planted_length_bias(
    base_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Half of the labels go to the longer reply, the others to the right one; quality and length are independent."""
    rng = np.random.default_rng(0)

    def pair(planted: bool) -> tuple[Preference, bool]:
        right, wrong = ("yes" + " um" * k for k in rng.choice(5, 2, replace=False))
        wrong = wrong.replace("yes", "no ")
        longer_is_right = len(right) > len(wrong)
        turn = planted and not longer_is_right and rng.random() < 0.5
        chosen, rejected = (wrong, right) if turn else (right, wrong)
        return Preference(
            [{"role": "user", "content": "?"}], chosen, rejected, "helpful", Origin("", 0)
        ), longer_is_right

    train, held = [pair(True)[0] for _ in range(640)], [pair(False) for _ in range(200)]
    bias = {}
    for control in ("none", "residual"):
        section = RewardOptions(length_control=control)  # type: ignore[arg-type]
        made = trainer(
            PairTrainer, base_folder, tokenizer, encode_pairs(tokenizer, train, section), tmp_path, section=section,
            steps=40, batch=16,
        )  # fmt: skip
        made.train()
        made.model.eval()
        rows = encode_pairs(tokenizer, [p for p, _ in held], RewardOptions())
        with torch.no_grad():
            batch = made.data_collator(rows)
            chosen, rejected = made.model(**batch).logits.squeeze(-1).chunk(2)
        right = (chosen > rejected).numpy()
        longer = np.array([is_longer for _, is_longer in held])
        bias[control] = right[longer].mean() - right[~longer].mean()
    assert bias["none"] > 0.2
    assert abs(bias["residual"]) < bias["none"] / 2


def test_no_pair_is_dropped_for_its_length(base_folder: Path, tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """TRL drops pairs over its max_length (1024 by default) from training and evaluation without counting them.

    The stage cuts and counts by itself, and gives its trainer no limit.
    """
    rows = encode_pairs(tokenizer, preferences(), RewardOptions())
    rows[5]["rejected_ids"] = rows[5]["rejected_ids"][:1] * 1500
    assert len(trainer(PairTrainer, base_folder, tokenizer, rows, tmp_path).train_dataset) == 12
    assert RewardConfig(output_dir=str(tmp_path), bf16=False).max_length == 1024
    given = []
    monkeypatch.setattr(reward_stage, "_RewardTrainer", lambda args, **kwargs: given.append(args) or stop())
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
    with pytest.raises(StopIteration):
        reward_stage._train(recipe, None, base_folder, tokenizer, AdapterPlan("joint", preferences(), 0), tmp_path)
    assert given[0].max_length is None


def stop() -> None:
    raise StopIteration
