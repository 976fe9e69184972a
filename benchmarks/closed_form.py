"""Does PPO learn the optimum that mathematics writes down? On tasks so small that the two can be compared exactly.

    python benchmarks/closed_form.py [--seeds 0-2] [--jobs 2] [--only NAME | --page]

The policy that maximises E[r] - beta KL(policy || reference) is softmax(log reference + r / beta) over all responses
(Korbak et al. 2022, arXiv:2205.11275, section 3). A model of 16 tokens, one of them EOS, answers four prompts: with one
token (16 responses), or with at most three (3,616 responses, the last token EOS or cut off). Both distributions are
summed over every response, so that nothing but training is random. TRL's trainers are given the same task.

Writes (not with --only): benchmarks/CLOSED_FORM.md, closed_form.json and closed_form.svg
"""

import argparse
import copy
import itertools
import json
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from quickstart import seeds_of
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from llm_rlhf import PPOConfig, PPOTrainer
from llm_rlhf.ppo import objectives

HERE = Path(__file__).parent
TOKENS = 16
EOS, PAD = 0, 1  # PAD is a choice like the others; only EOS ends a response
PROMPTS = [2, 3, 4, 5]  # one token each
LORA = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


@dataclass(frozen=True)
class Task:
    """What is answered and paid."""

    beta: float
    length: int = 1  # most tokens of a response
    temperature: float = 1.0
    eos_penalty: float = 0.0  # taken off a response that EOS does not end


@dataclass(frozen=True)
class Found:
    """How near training came."""

    distance: float  # total variation between the policy and the optimum, the mean over prompts
    start: float  # the same of the reference
    kl: float  # exact, of the policy to the reference, nats per response
    kl_optimal: float
    objective: float  # E[r] - beta KL of the policy
    objective_optimal: float

    @property
    def regret(self) -> float:
        return self.objective_optimal - self.objective


# ---- the task --------------------------------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    """Sixteen letters, a token each."""
    letters = {letter: i for i, letter in enumerate("abcdefghijklmnop")}
    raw = Tokenizer(models.WordLevel(letters, unk_token="b"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="a", pad_token="b", padding_side="left")


def model(length: int = 1) -> PreTrainedModel:
    """A random model of one layer whose choices are far from uniform and differ by prompt.

    LoRA leaves the output embeddings alone and the last norm fixes the states' size, so that a narrow model could not
    say the optimum of a small beta at all: of 32 dimensions, the nearest LoRA is .25 away at beta .1. And of several
    tokens a model must know the place, which one layer of relative positions does not.
    """
    torch.manual_seed(0)
    special = {"eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": None, "tie_word_embeddings": False}
    if length == 1:
        llama = LlamaConfig(
            vocab_size=TOKENS, hidden_size=512, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            head_dim=8, max_position_embeddings=16, initializer_range=0.05, **special,
        )  # fmt: skip
        return LlamaForCausalLM(llama)
    gpt2 = GPT2Config(
        vocab_size=TOKENS, n_embd=128, n_inner=64, n_layer=1, n_head=4, n_positions=16, initializer_range=0.1, **special
    )
    return GPT2LMHeadModel(gpt2).eval()


def responses(length: int) -> list[tuple[int, ...]]:
    """Every response: EOS last, or `length` tokens without one before the last."""
    others = [token for token in range(TOKENS) if token != EOS]
    found = [(*start, EOS) for n in range(length) for start in itertools.product(others, repeat=n)]
    return found + list(itertools.product(others, repeat=length))


def pay(prompt: int, response: tuple[int, ...]) -> float:
    """What a response is worth, in about -1 to 1: fixed, and different for every prompt, token and place."""
    return sum(math.sin(3.7 * prompt + 1.3 * token * (place + 1)) for place, token in enumerate(response)) / len(
        response
    )


def paid(completion_ids: list[list[int]], prompts: list[str], **_: Any) -> list[float]:
    """`pay` as a reward function; prompts are single letters."""
    return [pay(ord(p[-1]) - ord("a"), tuple(ids)) for p, ids in zip(prompts, completion_ids, strict=True)]


# ---- exactly ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_probabilities(policy: Any, task: Task) -> Tensor:
    """Of every response to every prompt, (prompts, responses), float64: sums to 1 over responses."""
    known = responses(task.length)
    padded = torch.tensor([[*response, *[PAD] * (task.length - len(response))] for response in known])
    counted = torch.tensor([[place < len(response) for place in range(task.length)] for response in known])
    rows = []
    for prompt in PROMPTS:
        ids = torch.cat([torch.full((len(known), 1), prompt), padded], 1)
        logits = policy(input_ids=ids[:, :-1]).logits.double() / task.temperature
        chosen = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        rows.append((chosen * counted).sum(1))
    return torch.stack(rows)


def rewards(task: Task) -> Tensor:
    """Of every response to every prompt, (prompts, responses), the penalty for a missing EOS taken off."""
    return torch.tensor(
        [[pay(p, r) - task.eos_penalty * (r[-1] != EOS) for r in responses(task.length)] for p in PROMPTS],
        dtype=torch.float64,
    )


def compare(policy: Tensor, reference: Tensor, task: Task) -> Found:
    """Policy and optimum, from log-probabilities of all responses."""
    paid = rewards(task)
    best = (reference + paid / task.beta).log_softmax(1)

    def worth(logs: Tensor) -> tuple[float, float]:
        kl = (logs.exp() * (logs - reference)).sum(1).mean()
        return float(kl), float((logs.exp() * paid).sum(1).mean() - task.beta * kl)

    return Found(_distance(policy, best), _distance(reference, best), *_mixed(worth(policy), worth(best)))


def _distance(logs: Tensor, others: Tensor) -> float:
    """Total variation, the mean over prompts."""
    return float((logs.exp() - others.exp()).abs().sum(1).mean() / 2)


def _mixed(found: tuple[float, float], best: tuple[float, float]) -> Iterator[float]:
    return itertools.chain.from_iterable(zip(found, best, strict=True))


# ---- training --------------------------------------------------------------------------------------------------------


def train(
    task: Task,
    seed: int,
    how: str = "ppo",
    full: bool = False,
    rollouts: int = 120,
    rows: int = 512,
    epochs: int = 2,
    **options: Any,
) -> Tensor:
    """Train, and return the policy's log-probabilities of all responses.

    Args:
        how: "ppo", or TRL's "rloo" and "grpo".
        full: the whole model is trained, not a LoRA.
        rollouts, rows, epochs: how many rollouts, responses in each, and optimizer steps on each.
        options: of the trainer's configuration.
    """
    common: dict[str, Any] = {
        "seed": seed, "beta": task.beta, "temperature": task.temperature, "max_completion_length": task.length,
        "per_device_train_batch_size": rows, "max_steps": epochs * rollouts, "num_iterations": epochs, "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "logging_strategy": "no", "learning_rate": 1e-3 if full else 3e-3,
        "lr_scheduler_type": "linear", "adam_epsilon": 1e-5, "max_grad_norm": 1.0,
    } | options  # fmt: skip
    prompts = [{"prompt": chr(ord("a") + prompt)} for prompt in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        if how == "ppo":
            kind, arguments = PPOTrainer, PPOConfig(folder, missing_eos_penalty=task.eos_penalty, **common)
        else:  # as many responses to every prompt as PPO sees in a rollout
            config = {"rloo": RLOOConfig, "grpo": GRPOConfig}[how]
            kind = {"rloo": RLOOTrainer, "grpo": GRPOTrainer}[how]
            arguments = config(folder, num_generations=rows // len(PROMPTS), **common)
        trainer = kind(
            model=model(task.length),
            reward_funcs=[paid],
            args=arguments,
            train_dataset=Dataset.from_list(prompts * (rows // len(PROMPTS) if how == "ppo" else 1)),
            processing_class=tokenizer(),
            peft_config=None if full else copy.deepcopy(LORA),
        )
        trainer.train()
        return log_probabilities(trainer.accelerator.unwrap_model(trainer.model), task)


def flow(task: Task, estimator: str, steps: int = 3000, learning_rate: float = 0.02) -> Tensor:
    """Exact gradient ascent on the logits where the estimator's value is paid as a reward, without any sampling."""
    reference, reward = log_probabilities(model(task.length), task), rewards(task)
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    for _ in range(steps):
        logs = logits.log_softmax(1)
        with torch.no_grad():
            earned = reward - task.beta * objectives.kl_estimate(logs, reference, estimator)
            weights = logs.exp() * (earned - (logs.exp() * earned).sum(1, keepdim=True))
        optimizer.zero_grad()
        (-(weights * logs).sum()).backward()
        optimizer.step()
    return logits.detach().log_softmax(1)


def forward_optimum(task: Task) -> Tensor:
    """Maximises E[r] - beta KL(reference || policy): policy = beta reference / (multiplier - r), by bisection."""
    reference, reward = log_probabilities(model(task.length), task), rewards(task)
    low = reward.max(1, keepdim=True).values
    high = low + task.beta
    low = low.clone()
    for _ in range(200):
        middle = (low + high) / 2
        over = (task.beta * reference.exp() / (middle - reward)).sum(1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (task.beta * reference.exp() / (high - reward)).log().log_softmax(1)


# ---- the table -------------------------------------------------------------------------------------------------------

PAPER = {"scale_rewards": "none", "use_bias_correction_kl": False}  # k3 as in the DeepSeekMath paper, arXiv:2402.03300
LONGER = {"rows": 1024, "rollouts": 200}
ROWS: dict[str, tuple[Task, dict[str, Any]]] = {
    "PPO, beta 0.1": (Task(0.1), {"rollouts": 300}),
    **{f"PPO, beta {beta:g}": (Task(beta), {}) for beta in (0.3, 1.0, 3.0, 10.0)},
    "PPO, beta 0.3, whole model": (Task(0.3), {"full": True}),
    "PPO, beta 0.3, value adapter": (Task(0.3), {"value": "adapter"}),
    "PPO, beta 0.3, temperature 0.7": (Task(0.3, temperature=0.7), {}),
    "PPO, up to 3 tokens, beta 1, EOS penalty 0.5": (Task(1.0, 3, eos_penalty=0.5), LONGER),
    "PPO, up to 3 tokens, beta 0.3, EOS penalty 0.5": (Task(0.3, 3, eos_penalty=0.5), LONGER),
    "RLOO (TRL), beta 0.3": (Task(0.3), {"how": "rloo"}),
    "GRPO (TRL), beta 0.3, as it comes": (Task(0.3), {"how": "grpo"}),
    "GRPO (TRL), beta 0.3, rewards not scaled": (Task(0.3), {"how": "grpo", "scale_rewards": "none"}),
    "GRPO (TRL), beta 0.3, nor the KL corrected": (Task(0.3), {"how": "grpo", **PAPER}),
}


def _one(job: tuple[str, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    name, seed = job
    task, options = ROWS[name]
    policy = train(task, seed, **options)
    found = compare(policy, log_probabilities(model(task.length), task), task)
    row = {"name": name, "seed": seed, **{key: round(number, 6) for key, number in asdict(found).items()}}
    if options.get("use_bias_correction_kl") is False:
        row["distance_forward"] = round(_distance(policy, forward_optimum(task)), 6)
    if task.length == 1:
        row["policy"] = [[round(p, 6) for p in of_prompt] for of_prompt in policy.exp().tolist()]
    print(f"{name}, seed {seed}: distance {found.distance:.4f}, regret {found.regret:.4f}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each uses one core")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--page", action="store_true", help="page and picture again, of closed_form.json")
    options = parser.parse_args()
    if options.page:
        _write(json.loads((HERE / "closed_form.json").read_text(encoding="utf-8")))
        return
    jobs = [(name, seed) for name in ROWS if options.only in name for seed in options.seeds]
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(_one, jobs))
    print(_table(rows))
    if not options.only:
        (HERE / "closed_form.json").write_text(json.dumps(rows) + "\n", encoding="utf-8")
        _write(rows)


def _write(rows: list[dict[str, Any]]) -> None:
    (HERE / "closed_form.svg").write_text(_picture(rows), encoding="utf-8")
    (HERE / "CLOSED_FORM.md").write_text(_page(rows), encoding="utf-8")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | reference to optimum | learned to optimum | KL learned / optimal | E[r] - beta KL learned / optimal |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        one = own[0]
        distances = [row["distance"] for row in own]
        kls, objective = (sum(row[key] for row in own) / len(own) for key in ("kl", "objective"))
        lines.append(
            f"| {name} | {one['start']:.4f} | {min(distances):.4f} to {max(distances):.4f} | "
            f"{kls:.4g} / {one['kl_optimal']:.4g} | {objective:.4f} / {one['objective_optimal']:.4f} |"
        )
    return "\n".join(lines)


def _page(rows: list[dict[str, Any]]) -> str:
    flows = []
    for beta in (0.3, 1.0, 3.0, 10.0):
        task = Task(beta)
        reference = log_probabilities(model(task.length), task)
        ends = [flow(task, estimator) for estimator in ("k1", "k3")]
        k1, k3 = (compare(end, reference, task) for end in ends)
        dead = [int((end.exp() < 1e-6).sum()) for end in ends]
        flows.append(f"| {beta:g} | {k1.kl_optimal:.4g} | {k1.kl:.4g} | {k3.kl:.4g} | {dead[0]} | {dead[1]} |")
    forward = [row["distance_forward"] for row in rows if "distance_forward" in row]
    return f"""# What PPO learns, beside what it should

Made by `python benchmarks/closed_form.py`: {len({row["seed"] for row in rows})} seeds a row, {PLACE}.
Sixteen tokens, four prompts; distances are total variation between the policy and
softmax(log reference + r / beta) over all responses, the mean over prompts (0: the same, 1: nothing in common), least
to most of the seeds; KLs in nats a response and objectives, the seeds' mean.

{_table(rows)}

![Probability of every response to every prompt: learned against optimal](closed_form.svg)

With one token, LoRA, the whole model, either value function and another temperature come to the same optimum, at every
beta. What a policy no longer samples it cannot find again: in the farthest run of temperature 0.7 a response worth .087
at the optimum was pushed to .0001 by the first steps and stayed there. Sequences of up to three tokens are nearly
there: exact gradients of the same LoRA, nothing sampled, are .014 away at beta 1 after as many steps.

TRL's RLOO pays what PPO pays here and has the same optimum. TRL's GRPO has it too where rewards are not scaled
(`scale_rewards="none"`): it adds beta k3 to the loss and multiplies it by the ratio, whose gradient counts. As it
comes it divides rewards by their deviation in the group, which shrinks as a policy becomes sure, so that the KL weighs
less and less beside them; it ends far from the optimum. Without the ratio (`use_bias_correction_kl=False`, as k3 was
proposed) the gradient of the penalty is that of KL(reference || policy), the other way round. Its optimum is
beta reference / (multiplier - r), and that is where it goes, to {min(forward):.3f} to {max(forward):.3f} of it.

## k3 paid as a reward

Exact gradient ascent on the logits, without any sampling, 3,000 steps of Adam: with k1 the KL ends where it should,
with k3 it does not, however large beta is. Paid as a reward, k3 has the gradient of
KL(policy || reference) - KL(reference || policy) (docs/ppo.md): a response made rarer is pushed further
down, to nothing.

| beta | KL, optimal | KL, k1 paid | KL, k3 paid | of 64 responses below 1e-6, k1 | k3 |
|---|---|---|---|---|---|
{chr(10).join(flows)}
"""


PLACE = "one core each"
COLOURS = {0.1: "#b2452e", 0.3: "#c98a1b", 1.0: "#3a7d44", 3.0: "#2b6cb0", 10.0: "#6b4fa0"}


def _picture(rows: list[dict[str, Any]]) -> str:
    """Every response's learned probability over its optimal one, a colour a beta, both on a logarithmic scale."""
    low, high, size, left = -4.0, 0.0, 420, 60

    def place(probability: float) -> float:
        return (max(math.log10(max(probability, 1e-12)), low) - low) / (high - low) * size

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + size + 150} {size + 60}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#333">',
        f'<rect width="{left + size + 150}" height="{size + 60}" fill="#fff"/>',
        f'<path d="M{left} {10 + size} L{left + size} 10" stroke="#999" stroke-dasharray="4 4"/>',
        f'<path d="M{left} 10 V{10 + size} H{left + size}" stroke="#333" fill="none"/>',
    ]
    for power in range(int(low), int(high) + 1):
        at = place(10.0**power)
        label = f"{10.0**power:g}"
        parts.append(f'<text x="{left + at}" y="{28 + size}" text-anchor="middle">{label}</text>')
        parts.append(f'<text x="{left - 8}" y="{14 + size - at}" text-anchor="end">{label}</text>')
    parts.append(f'<text x="{left + size / 2}" y="{50 + size}" text-anchor="middle">probability at the optimum</text>')
    parts.append(
        f'<text transform="translate(14 {10 + size / 2}) rotate(-90)" text-anchor="middle">learned by PPO</text>'
    )
    for i, (beta, colour) in enumerate(COLOURS.items()):
        task = Task(beta)
        best = (log_probabilities(model(task.length), task) + rewards(task) / beta).softmax(1)
        row = next((row for row in rows if row["name"] == f"PPO, beta {beta:g}"), None)
        if row is None:
            continue
        for expected, learned in zip(best.flatten().tolist(), itertools.chain(*row["policy"]), strict=True):
            x, y = left + place(expected), 10 + size - place(learned)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.7"/>')
        parts.append(f'<circle cx="{left + size + 20}" cy="{24 + 22 * i}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + size + 32}" y="{28 + 22 * i}">beta {beta:g}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
