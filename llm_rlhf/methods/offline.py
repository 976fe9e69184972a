"""Learning from what people said of replies: DPO and KTO, TRL's trainers on this project's token ids.

The reference is the base, the policy with its adapter off. Replies are encoded as SFT encodes them, each with the
thought that it may begin with.

Private methods of TRL's trainers that are overridden, guarded by tests/methods/test_methods_contract.py:
`_prepare_dataset`.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from trl import DPOTrainer, KTOTrainer

from llm_rlhf.data.rows import Conversation, Preference, Rating
from llm_rlhf.models.adapter_training import TrainedAdapter
from llm_rlhf.models.encoding import Encoded, encode_whole_replies
from llm_rlhf.models.halving import HalvesBatches, HalvesPairs

Rows = list[dict[str, Any]]


class _ReadsTokenIds(TrainedAdapter):
    """The rows are token ids already: to encode messages, TRL applies the template in another way than every stage."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class PairDPOTrainer(HalvesPairs, _ReadsTokenIds, DPOTrainer):
    """Rows of `dpo_rows`. Everything else is as in trl.DPOTrainer."""

    stage_name = "dpo"

    def inseparable(self) -> str | None:
        mixed = [name for name in self.loss_types if name in ("aot", "aot_unpaired", "sft")]
        return f"dpo.loss_type {mixed[0]} is not a mean over pairs" if mixed else super().inseparable()


class ReplyKTOTrainer(HalvesBatches, _ReadsTokenIds, KTOTrainer):
    """Rows of `kto_rows`, in their order. Everything else is as in trl.KTOTrainer."""

    stage_name = "kto"

    def inseparable(self) -> str | None:
        if self.calculate_KL:
            return "kto estimates its KL over the whole micro-batch"
        return super().inseparable()


class Said(NamedTuple):
    """A reply to a prompt, and whether it is a good one."""

    prompt: Conversation
    text: str
    stopped: bool  # as in Preference
    good: bool


def replies_of(pairs: Sequence[Preference]) -> list[Said]:
    """Both replies of every pair, the chosen one first."""
    return [Said(p.prompt, *side, good) for p in pairs for side, good in zip(p.sides, (True, False), strict=True)]


def not_in_pairs(ratings: Sequence[Rating], pairs: Sequence[Preference]) -> list[Rating]:
    """The ratings but for those that a pair holds already: one file may serve both lists."""
    known = {repr(said) for said in replies_of(pairs)}
    return [row for row in ratings if repr(_rated(row)) not in known]


def _rated(row: Rating) -> Said:
    return Said(row.prompt, row.reply, row.stopped, row.good)


def _encoded(tokenizer: Any, replies: Sequence[Said]) -> list[Encoded]:
    encoded = encode_whole_replies(tokenizer, [said.prompt for said in replies], [said.text for said in replies])
    return [ids.as_said(said.stopped) for ids, said in zip(encoded, replies, strict=True)]


def dpo_rows(tokenizer: Any, pairs: Sequence[Preference]) -> Rows:
    """What DPOTrainer's collator takes; `length` is what `train_sampling_strategy: group_by_length` goes by."""
    encoded = _encoded(tokenizer, replies_of(pairs))
    return [
        {
            "prompt_ids": chosen.prompt_ids,
            "chosen_ids": chosen.reply_ids,
            "rejected_ids": rejected.reply_ids,
            "length": max(len(chosen.ids), len(rejected.ids)),
        }
        for chosen, rejected in zip(encoded[::2], encoded[1::2], strict=True)
    ]


def kto_rows(
    tokenizer: Any,
    pairs: Sequence[Preference],
    ratings: Sequence[Rating],
    batch_size: int,
    seed: int,
    estimates_kl: bool,
) -> Rows:
    """What KTOTrainer's collator takes: every reply by itself, desirable or not, in the order it is trained in.

    TRL goes through the rows in order, as each has the reply of another row of its batch beside it, by which the KL is
    estimated: (x_1, y_n), (x_2, y_1), ... So they are shuffled here, once.

    Args:
        batch_size: of all processes together, so that their number changes nothing; the last batch may be smaller.
        estimates_kl: whether the loss does (`kto`), or not (`apo_zero_unpaired`).
    """
    replies = replies_of(pairs) + [_rated(row) for row in ratings]
    encoded = _encoded(tokenizer, replies)
    rows: Rows = [
        {"prompt_ids": ids.prompt_ids, "completion_ids": ids.reply_ids, "label": said.good, "length": len(ids.ids)}
        for ids, said in zip(encoded, replies, strict=True)
    ]
    random.Random(seed).shuffle(rows)
    if estimates_kl:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            for row, other in zip(batch, [batch[-1], *batch[:-1]], strict=True):
                row["KL_completion_ids"] = other["completion_ids"]
    return rows


class Balance(NamedTuple):
    """How KTO weighs good and bad replies, and a sentence on it; empty where both weigh 1."""

    desirable: float
    undesirable: float
    note: str = ""


def balance(good: int, bad: int, desirable: float | None, undesirable: float | None) -> Balance:
    """Weights under which good replies count in all as much as bad ones, up to a third more.

    Ethayarajh et al. 2024 (arXiv:2402.01306), equation 8: desirable x good / (undesirable x bad) in [1, 4/3]. Weights
    that the recipe sets are kept; without them the rarer kind weighs so much that the quotient is 1.

    Args:
        good, bad: replies of either kind, over 0.
        desirable, undesirable: what the recipe sets; None: nothing.
    """
    told = f"kto learns from {good:,} good and {bad:,} bad replies"
    if desirable is None and undesirable is None:
        desirable, undesirable = max(bad / good, 1.0), max(good / bad, 1.0)
        if good == bad:
            return Balance(desirable, undesirable)
        rarer = f"kto.desirable_weight: {desirable:.3g}" if good < bad else f"kto.undesirable_weight: {undesirable:.3g}"
        return Balance(desirable, undesirable, f"{told}; the rarer ones weigh more ({rarer}).")
    desirable, undesirable = 1.0 if desirable is None else desirable, 1.0 if undesirable is None else undesirable
    low = undesirable * bad / good
    if low * (1 - 1e-6) <= desirable <= low * 4 / 3 * (1 + 1e-6):
        return Balance(desirable, undesirable)
    note = (
        f"{told}, and kto.undesirable_weight is {undesirable:g}: its authors advise a kto.desirable_weight of "
        f"{low:.3g} to {low * 4 / 3:.3g}, and it is {desirable:g}. Leave both keys out to have them balanced."
    )
    return Balance(desirable, undesirable, note)
