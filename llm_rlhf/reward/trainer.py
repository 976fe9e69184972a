"""TRL's RewardTrainer with soft labels, margins on some pairs only, and length control.

Without soft labels and length control the loss is TRL's own, to the bit, margins and centring included.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from llm_rlhf.data.rows import Preference
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.recipe.sections import RewardOptions
from llm_rlhf.reward.length import RATE, fit_length_weight, length_features, length_slope
from llm_rlhf.reward.objectives import pair_losses, smoothed

MARGIN = "margin"  # TRL's column
CONFIDENCE, LENGTH = "confidence", "length_feature"  # ours


def encode_pairs(tokenizer: Any, pairs: list[Preference], options: RewardOptions) -> list[dict[str, Any]]:
    """The trainer's rows. A column is there where some pair needs it: 0 is the margin of a pair that has none."""
    rows = list[dict[str, Any]]()
    for pair in pairs:
        chosen, rejected = (encode_reply(tokenizer, pair.prompt, text).as_said(end).ids for text, end in pair.sides)
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected})
    for row in rows:  # by which `train_sampling_strategy: group_by_length` puts rows of like length together
        row["length"] = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    if any(pair.margin is not None for pair in pairs):
        for row, pair in zip(rows, pairs, strict=True):
            row[MARGIN] = float(pair.margin or 0.0)
    confidences = [smoothed(pair.confidence, options.label_smoothing) for pair in pairs]
    if any(confidence != 1.0 for confidence in confidences):
        for row, confidence in zip(rows, confidences, strict=True):
            row[CONFIDENCE] = confidence
    if options.length_control != "none":
        features = length_features([len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows])
        for row, feature in zip(rows, features, strict=True):
            row[LENGTH] = feature
    return rows


def starting_weight(rows: list[dict[str, Any]], options: RewardOptions) -> float:
    """Where the length's weight starts: its maximum likelihood while all scores are alike."""
    if options.length_control != "residual":
        return 0.0
    return fit_length_weight([row[LENGTH] for row in rows], [row.get(CONFIDENCE, 1.0) for row in rows])


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's collator, with our columns where the rows have them."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        for column in (CONFIDENCE, LENGTH):
            if column in examples[0]:
                batch[column] = torch.tensor([row[column] for row in examples], dtype=torch.float)
        return batch


class PairTrainer(RewardTrainer):
    """Trains on rows of chosen_ids and rejected_ids, and optionally margin, confidence and length_feature.

    Args:
        options: whose `length_control` says what becomes of length_feature.
        length_weight: where `residual`'s weight starts.

    Everything else is as in trl.RewardTrainer.
    """

    def __init__(self, *args: Any, options: RewardOptions, length_weight: float = 0.0, **kwargs: Any) -> None:
        tokenizer, config = kwargs["processing_class"], kwargs["args"]
        config.remove_unused_columns = False  # the parent knows none of our columns
        collator = PairCollator(pad_token_id=tokenizer.pad_token_id, pad_to_multiple_of=config.pad_to_multiple_of)
        super().__init__(*args, data_collator=collator, **kwargs)
        self.options = options
        self.length_weight = length_weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        own = {name: inputs[name] for name in (CONFIDENCE, LENGTH) if name in inputs}
        if not own:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        known = {name: value for name, value in inputs.items() if name not in (*own, MARGIN)}
        _, outputs = super().compute_loss(model, known, True, num_items_in_batch)  # TRL's metrics, and the scores
        chosen_B, rejected_B = outputs.logits.squeeze(-1).float().chunk(2)
        gap_B = chosen_B - rejected_B
        zeros_B = torch.zeros_like(gap_B)
        confidence_B, x_B = own.get(CONFIDENCE, zeros_B + 1), own.get(LENGTH, zeros_B)
        offset_B = zeros_B
        if self.options.length_control == "residual":
            if self.model.training:
                self._follow_likelihood(gap_B.detach(), x_B, confidence_B)
            offset_B = self.length_weight * x_B
        loss = pair_losses(gap_B, confidence_B, inputs.get(MARGIN, zeros_B), offset_B).mean()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * ((chosen_B + rejected_B) ** 2).mean()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.options.length_control == "residual":
            logs["length_weight"] = self.length_weight
        super().log(logs, *args, **kwargs)

    def _follow_likelihood(self, gap_B: Tensor, x_B: Tensor, confidence_B: Tensor) -> None:
        """Move the length's weight towards its maximum likelihood beside the scores as they are now."""
        sums = torch.stack(length_slope(self.length_weight, gap_B, x_B, confidence_B))
        slope, curvature = self.accelerator.reduce(sums, reduction="sum").tolist()
        self.length_weight += RATE * slope / (curvature + 1.0)
