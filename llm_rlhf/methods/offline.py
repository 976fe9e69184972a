"""Learning from the pairs themselves: DPO and KTO, TRL's trainers on this project's token ids.

The reference is the base, the policy with its adapter off. A pair's replies are encoded as SFT encodes them, each with
the thought that it may begin with.

Private methods of TRL's trainers that are overridden, guarded by tests/methods/test_methods_contract.py:
`_prepare_dataset`.
"""

import random
from collections.abc import Sequence
from typing import Any

from trl import DPOTrainer, KTOTrainer

from llm_rlhf.data.rows import Preference
from llm_rlhf.methods.training import TrainedPolicy
from llm_rlhf.models.encoding import Encoded, encode_whole_replies

Rows = list[dict[str, Any]]


class _ReadsTokenIds(TrainedPolicy):
    """The rows are token ids already: to encode messages, TRL applies the template in another way than every stage."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class PairDPOTrainer(_ReadsTokenIds, DPOTrainer):
    """Rows of `dpo_rows`. Everything else is as in trl.DPOTrainer."""

    stage_name = "dpo"


class ReplyKTOTrainer(_ReadsTokenIds, KTOTrainer):
    """Rows of `kto_rows`, in their order. Everything else is as in trl.KTOTrainer."""

    stage_name = "kto"


def _both(tokenizer: Any, pairs: Sequence[Preference]) -> list[tuple[Encoded, Encoded]]:
    """Each pair's chosen and rejected reply behind their prompt."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    encoded = encode_whole_replies(
        tokenizer, prompts, [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    )
    return list(zip(encoded[::2], encoded[1::2], strict=True))


def dpo_rows(tokenizer: Any, pairs: Sequence[Preference]) -> Rows:
    """What DPOTrainer's collator takes; `length` is what `train_sampling_strategy: group_by_length` goes by."""
    return [
        {
            "prompt_ids": chosen.prompt_ids,
            "chosen_ids": chosen.reply_ids,
            "rejected_ids": rejected.reply_ids,
            "length": max(len(chosen.ids), len(rejected.ids)),
        }
        for chosen, rejected in _both(tokenizer, pairs)
    ]


def kto_rows(tokenizer: Any, pairs: Sequence[Preference], batch_size: int, seed: int, estimates_kl: bool) -> Rows:
    """What KTOTrainer's collator takes: every reply by itself, desirable or not, in the order it is trained in.

    TRL goes through the rows in order, as each has the reply of another row of its batch beside it, by which the KL is
    estimated: (x_1, y_n), (x_2, y_1), ... So they are shuffled here, once.

    Args:
        batch_size: of one process; the last batch may be smaller.
        estimates_kl: whether the loss does (`kto`), or not (`apo_zero_unpaired`).
    """
    rows: Rows = [
        {"prompt_ids": reply.prompt_ids, "completion_ids": reply.reply_ids, "label": reply is chosen}
        for chosen, rejected in _both(tokenizer, pairs)
        for reply in (chosen, rejected)
    ]
    random.Random(seed).shuffle(rows)
    if estimates_kl:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            for row, other in zip(batch, [batch[-1], *batch[:-1]], strict=True):
                row["KL_completion_ids"] = other["completion_ids"]
    return rows
