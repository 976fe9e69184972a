"""The losses of DPO and KTO against their papers' formulas, worked from two forwards: the adapter on, and off."""

from typing import Any

import pytest
import torch
from method_helpers import ASKED, make, moved

from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.errors import NonFiniteError
from llm_rlhf.methods.offline import dpo_rows, kto_rows

BETA = 0.3


def pairs(count: int) -> list[Preference]:
    return [
        Preference(ASKED[i], "yes, it is so " * (i + 1), f"no {i}", "helpful", Origin("here", i)) for i in range(count)
    ]


def log_ratio(model: Any, prompt_ids: list[int], reply_ids: list[int]) -> torch.Tensor:
    """log p(y|x) - log p0(y|x), the reference being the base: every adapter off."""

    def read() -> torch.Tensor:
        ids = torch.tensor([prompt_ids + reply_ids])
        logprobs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        return logprobs.gather(1, ids[0, 1:, None])[len(prompt_ids) - 1 :].sum()

    with torch.no_grad():
        policy = read()
        with model.disable_adapter():
            return policy - read()


def test_dpo_is_the_log_sigmoid_of_the_margin(base_folder, tokenizer, tmp_path) -> None:
    trainer = moved(make("dpo", base_folder, tmp_path, beta=BETA))
    rows = dpo_rows(tokenizer, pairs(2))
    margins = [
        log_ratio(trainer.model, row["prompt_ids"], row["chosen_ids"])
        - log_ratio(trainer.model, row["prompt_ids"], row["rejected_ids"])
        for row in rows
    ]
    expected = -torch.nn.functional.logsigmoid(BETA * torch.stack(margins)).mean()
    assert min(abs(float(margin)) for margin in margins) > 0.1
    found = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_kto_is_one_less_the_sigmoid_of_what_lies_above_the_kl_of_mismatched_replies(
    base_folder, tokenizer, tmp_path
) -> None:
    trainer = moved(make("kto", base_folder, tmp_path, beta=BETA))
    rows = kto_rows(tokenizer, pairs(2), [], batch_size=4, seed=0, estimates_kl=True)
    model = trainer.model
    kl = (
        torch.stack([log_ratio(model, row["prompt_ids"], row["KL_completion_ids"]) for row in rows]).mean().clamp(min=0)
    )
    ratios = [log_ratio(model, row["prompt_ids"], row["completion_ids"]) for row in rows]
    signs = [1 if row["label"] else -1 for row in rows]
    expected = sum(
        1 - torch.sigmoid(BETA * sign * (ratio - kl)) for sign, ratio in zip(signs, ratios, strict=True)
    ) / len(rows)
    found = trainer.compute_loss(model, trainer.data_collator(rows))
    assert sorted(signs) == [-1, -1, 1, 1]
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_loss_that_is_no_number_stops_the_training(kind, base_folder, tmp_path) -> None:
    trainer = make(kind, base_folder, tmp_path, max_steps=1)
    next(p for name, p in trainer.model.named_parameters() if "lora_B" in name).data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=f"The {kind} loss is nan at optimizer step 0"):
        trainer.train()
