"""Records what trl 1.12.0's PPOTrainer computes from fixed float64 tensors, in oracle_trl_1_12.json.

1.12 is the last TRL with a PPOTrainer, so it needs an environment of its own:

    python3 -m venv /tmp/trl112
    /tmp/trl112/bin/pip install trl==1.12.0 torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
    /tmp/trl112/bin/python tests/parity/record_trl_oracle.py

The numbers come out of the real `PPOTrainer.train()`. Only its models are stand-ins, which answer with tables of
numbers, one answer during the rollout and another during the update, so that ratios and values move and some are
clipped. The tensors are read from `train`'s own frame: at its call of `accelerator.backward`, and at its call of `log`.

Layout: B rows (sorted by prompt), P prompt tokens, R response tokens, T both, W width of an answer.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import trl
from torch import Tensor, nn
from trl.experimental.ppo import PPOConfig, PPOTrainer

B, P, R, V = 8, 2, 6, 7
PAD, EOS, FIRST_ROW = 0, 1, 100  # a row's prompt starts with FIRST_ROW + its number, by which the stand-ins know it
LENGTHS = {"full": [R] * B, "early_eos": [1, 2, 3, 4, 5, 5, R, R]}
CUT = {"full": [1, 4, 6], "early_eos": [7]}  # rows that never stop by themselves
ESTIMATORS = ("k1", "k3")
DISCOUNTS = ((1.0, 0.95), (0.97, 0.8), (1.0, 1.0))
SETTINGS = {"kl_coef": 0.3, "cliprange": 0.2, "cliprange_value": 0.2, "missing_eos_penalty": 0.75}


class Table(nn.Module):
    """Stands in for a model: answers each row with fixed numbers, as its logits and as its last hidden state."""

    base_model_prefix = "backbone"
    is_gradient_checkpointing = False

    def __init__(self, rollout_BTW: Tensor, update_BTW: Tensor | None = None, responses_BR: Tensor | None = None):
        super().__init__()
        self.rollout, self.update, self.responses = rollout_BTW, update_BTW, responses_BR
        self.zero = nn.Parameter(torch.zeros(()))  # something to train
        self.score = nn.Identity()
        self.config, self.generation_config = SimpleNamespace(), SimpleNamespace()

    @property
    def backbone(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        table = self.update if torch.is_grad_enabled() and self.update is not None else self.rollout
        answer = table[input_ids[:, 0] - FIRST_ROW] + self.zero
        return SimpleNamespace(logits=answer, hidden_states=[answer])

    def generate(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        assert self.responses is not None
        rows = input_ids[:, 0] - FIRST_ROW
        scores = self.rollout[rows, P - 1 : -1].unbind(1)
        return SimpleNamespace(sequences=torch.cat([input_ids, self.responses[rows]], 1), scores=scores)


def fixed_models(lengths: str) -> dict[str, Table]:
    """Stand-ins whose tables are the same in every case of one kind of lengths."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return spread * torch.randn(*shape, generator=generator)

    responses = torch.randint(2, V, (B, R), generator=generator)
    for row, length in enumerate(LENGTHS[lengths]):
        responses[row, length:] = PAD
        if row not in CUT[lengths]:
            responses[row, length - 1] = EOS
    logits, values = normal(B, P + R, V), normal(B, P + R, 1)
    return {
        "model": Table(logits, logits + normal(B, P + R, V, spread=0.3), responses),
        "ref_model": Table(logits + normal(B, P + R, V, spread=0.4)),
        "value_model": Table(values, values + normal(B, P + R, 1, spread=0.4)),
        "reward_model": Table(normal(B, 1, 1, spread=2.0).expand(B, P + R, 1)),
    }


def train_once(lengths: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs of one iteration: the local variables of `train`, rows in the order of the prompts."""
    models = fixed_models(lengths)
    transformers.set_seed(0)  # the update's order of rows, which the last digit of a sum depends on
    args = PPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=B, total_episodes=B, num_ppo_epochs=1,
        response_length=R, temperature=1.0, stop_token="eos", num_sample_generations=0, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to="none", disable_tqdm=True, save_strategy="no", **SETTINGS, **options,
    )  # fmt: skip
    optimizer = torch.optim.SGD(models["model"].parameters(), lr=0.0)
    trainer = PPOTrainer(
        args=args,
        processing_class=SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS),
        train_dataset=[{"input_ids": [FIRST_ROW + row, 2]} for row in range(B)],
        data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)),
        **models,
    )
    in_update: dict[str, Any] = {}
    at_end: dict[str, Any] = {}
    backward = trainer.accelerator.backward

    def note_update(loss: Tensor) -> None:
        in_update.update(sys._getframe(1).f_locals)
        backward(loss)

    def note_end(_metrics: dict[str, float]) -> None:
        at_end.update(sys._getframe(1).f_locals)

    trainer.accelerator.backward, trainer.log = note_update, note_end
    trainer.train()
    order = at_end["queries"][:, 0].argsort()
    # The update went through the rows in another order still.
    update_order = torch.as_tensor(in_update["micro_batch_inds"]).argsort()[order]
    raw_scores = models["reward_model"].rollout[:, 0, 0]
    inputs = {
        "response_mask": ~at_end["padding_mask"][order],
        "stopped": at_end["contain_eos_token"][order],
        "scores": raw_scores,
        "old_logprobs": at_end["logprobs"][order],
        "ref_logprobs": at_end["ref_logprobs"][order],
        "old_values": at_end["values"][order],
        "new_logprobs": in_update["new_logprobs"][update_order],
        "new_values": in_update["vpred"][update_order],
    }
    outputs = {name: at_end[name][order] for name in ("rewards", "advantages", "returns")}
    outputs |= {"policy_loss": in_update["pg_loss"], "value_loss": in_update["vf_loss"]}
    outputs["approx_kl"] = at_end["approxkl_stats"].squeeze()
    return as_lists(inputs), as_lists(outputs)


def as_lists(tensors: dict[str, Tensor]) -> dict[str, Any]:
    assert all(t.dtype in (torch.float64, torch.bool) for t in tensors.values()), "something was not float64"
    return {name: t.tolist() for name, t in tensors.items()}


def main() -> None:
    assert trl.__version__ == "1.12.0", f"this records trl 1.12.0, but {trl.__version__} is installed"
    torch.set_default_dtype(torch.float64)
    inputs: dict[str, Any] = {}
    cases = []
    for lengths, estimator, (gamma, lam) in itertools.product(LENGTHS, ESTIMATORS, DISCOUNTS):
        # Reward whitening once for each kind of lengths.
        for whiten in (False, True) if (estimator, lam) == ("k1", 0.8) else (False,):
            options = {"kl_estimator": estimator, "gamma": gamma, "lam": lam, "whiten_rewards": whiten}
            given, outputs = train_once(lengths, **options)
            assert inputs.setdefault(lengths, given) == given, "the inputs differ between cases"
            cases.append({"lengths": lengths, **options, **outputs})
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    record = {"versions": versions, "settings": SETTINGS, "inputs": inputs, "cases": cases}
    file = Path(__file__).with_name("oracle_trl_1_12.json")
    file.write_text(json.dumps(record).replace('{"lengths"', '\n{"lengths"') + "\n")
    print(f"{len(cases)} cases in {file}, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
