"""What DPO and KTO train on: the project's own token ids, whatever the template does."""

from dataclasses import replace
from typing import Any

import pytest
from datasets import Dataset
from template_helpers import stand_in
from transformers import AutoModelForCausalLM
from trl import DPOConfig, KTOConfig

from llm_rlhf.data.rows import Origin, Preference, Rating
from llm_rlhf.methods.offline import PairDPOTrainer, ReplyKTOTrainer, dpo_rows, kto_rows, not_in_pairs
from llm_rlhf.models.encoding import encode_prompt, encode_replies, encode_turn, encode_whole_replies
from llm_rlhf.models.fitting import Fitted, fit_preferences

ASKED = [{"role": "user", "content": "Why?"}]
LATER = [*ASKED, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSo."}, {"role": "user", "content": "And?"}]
PAIRS = [
    Preference(ASKED, "Because it is.", "No.", "helpful", Origin("here", 1)),
    Preference(LATER, "<think>\nwell, let me see\n</think>\n\nYes.", "Go away.", "harmless", Origin("here", 2)),
]
"""The second has a thought in its history, which most templates drop, and one before its chosen reply."""


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5", "llama3", "deepseekv3"])
def test_rows_are_what_a_policy_would_say_behind_the_prompt_it_would_be_asked(family: str) -> None:
    tokenizer = stand_in(family)
    for row, pair in zip(dpo_rows(tokenizer, PAIRS), PAIRS, strict=True):
        assert row["prompt_ids"] == encode_prompt(tokenizer, pair.prompt)
        for side in ("chosen", "rejected"):
            turn = {"role": "assistant", "content": getattr(pair, side)}
            assert row["prompt_ids"] + row[f"{side}_ids"] == encode_turn(tokenizer, pair.prompt, turn).ids
            assert row[f"{side}_ids"][-1] == tokenizer.eos_token_id
        assert row["length"] == len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def test_the_thought_counts_towards_the_length_of_what_a_policy_learns_and_not_of_what_is_judged() -> None:
    tokenizer = stand_in("qwen3")
    judged = max(len(e.ids) for e in encode_replies(tokenizer, [LATER] * 2, [PAIRS[1].chosen, PAIRS[1].rejected]))
    said = max(len(e.ids) for e in encode_whole_replies(tokenizer, [LATER] * 2, [PAIRS[1].chosen, PAIRS[1].rejected]))
    assert said > judged
    kept = fit_preferences(tokenizer, PAIRS[1:], Fitted(said, "pairs"), encode_whole_replies)
    assert [pair.prompt for pair in kept] == [LATER]
    shorter = fit_preferences(tokenizer, PAIRS[1:], Fitted(said - 1, "pairs"), encode_whole_replies)
    assert [pair.prompt for pair in shorter] != [LATER]  # it lost its oldest turns, or was set aside
    assert [pair.prompt for pair in fit_preferences(tokenizer, PAIRS[1:], Fitted(judged, "pairs"))] == [LATER]


def test_nobody_learns_to_end_where_a_reply_was_cut(tokenizer) -> None:
    """The pairs of `numbered`, one of them with both replies cut, and two ratings, one cut."""
    whole, cut = numbered(2)[0], replace(numbered(2)[1], chosen_stopped=False, rejected_stopped=False)
    ends = [[row[f"{side}_ids"][-1] == tokenizer.eos_token_id for side in ("chosen", "rejected")]
            for row in dpo_rows(tokenizer, [whole, cut])]  # fmt: skip
    assert ends == [[True, True], [False, False]]
    ratings = [Rating(ASKED, f"so {i}", True, "helpful", Origin("here", i), stopped=i == 0) for i in range(2)]
    rows = kto_rows(tokenizer, [whole, cut], ratings, batch_size=6, seed=0, estimates_kl=False)
    said = {tokenizer.decode(row["completion_ids"], skip_special_tokens=True).strip():
            row["completion_ids"][-1] == tokenizer.eos_token_id for row in rows}  # fmt: skip
    assert said == {"yes 0": True, "no 0": True, "yes 1": False, "no 1": False, "so 0": True, "so 1": False}
    of_pair = Rating(ASKED, "yes 1", True, "helpful", Origin("here", 1), stopped=False)
    assert not_in_pairs([of_pair, *ratings], [whole, cut]) == ratings  # the pair has it, cut as it is


def numbered(count: int) -> list[Preference]:
    return [Preference(ASKED, f"yes {i}", f"no {i}", "helpful", Origin("here", i)) for i in range(count)]


def test_kto_gets_both_replies_of_every_pair_shuffled_and_beside_each_the_one_before_it(tokenizer) -> None:
    rows = kto_rows(tokenizer, numbered(5), [], batch_size=4, seed=0, estimates_kl=True)
    assert sum(row["label"] for row in rows) == 5
    assert len(rows) == 10
    said = [tokenizer.decode(row["completion_ids"], skip_special_tokens=True).strip() for row in rows]
    assert sorted(said) == sorted([f"yes {i}" for i in range(5)] + [f"no {i}" for i in range(5)])
    assert [row["label"] for row in rows] == [text.startswith("yes") for text in said]
    assert said != [text for i in range(5) for text in (f"yes {i}", f"no {i}")]
    for batch in (rows[:4], rows[4:8], rows[8:]):  # (x_1, y_n), (x_2, y_1), ...
        ids = [row["completion_ids"] for row in batch]
        assert [row["KL_completion_ids"] for row in batch] == [ids[-1], *ids[:-1]]
    again = kto_rows(tokenizer, numbered(5), [], batch_size=4, seed=0, estimates_kl=False)
    assert [row["completion_ids"] for row in again] == [row["completion_ids"] for row in rows]
    assert "KL_completion_ids" not in again[0]
    other = kto_rows(tokenizer, numbered(5), [], batch_size=4, seed=1, estimates_kl=False)
    assert [row["completion_ids"] for row in other] != [row["completion_ids"] for row in rows]


def trainer_of(kind: str, base: Any, tokenizer: Any, folder: Any, lora: Any) -> Any:
    common: dict[str, Any] = {
        "output_dir": str(folder), "report_to": "none", "bf16": False, "use_cpu": True, "max_length": None,
        "per_device_train_batch_size": 2, "remove_unused_columns": False,
    }  # fmt: skip
    kinds: dict[str, Any] = {"dpo": (PairDPOTrainer, DPOConfig), "kto": (ReplyKTOTrainer, KTOConfig)}
    trainer, config = kinds[kind]
    rows = dpo_rows(tokenizer, numbered(4)) if kind == "dpo" else kto_rows(tokenizer, numbered(4), [], 2, 0, True)
    return rows, trainer(
        model=AutoModelForCausalLM.from_pretrained(base), args=config(**common), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_the_trainers_batches_hold_the_rows_ids_as_they_are(kind, base_folder, tokenizer, tmp_path) -> None:
    from ppo_helpers import LORA

    rows, trainer = trainer_of(kind, base_folder, tokenizer, tmp_path, LORA)
    seen = []
    for batch in trainer.get_train_dataloader():
        for ids, mask, counted in zip(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
        ):
            row = ids[mask.bool()].tolist()
            seen.append((row, ids[counted.bool()].tolist()))
    sides = ("chosen_ids", "rejected_ids") if kind == "dpo" else ("completion_ids",)
    assert sorted(seen) == sorted((row["prompt_ids"] + row[side], row[side]) for row in rows for side in sides)
    if kind == "kto":  # in the rows' order, as the KL's replies go by their place in the batch
        assert seen == [(row["prompt_ids"] + row["completion_ids"], row["completion_ids"]) for row in rows]
