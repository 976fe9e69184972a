"""What PPO's sampling gains on a CPU: with the adapter beside the base or merged, finished rows staying or not.

    python benchmarks/sampling.py       # three minutes; writes SAMPLING.md beside this file

32 prompts of 32 tokens, up to 64 new ones, a random Llama of 8 layers with LoRA of rank 16 on all linear layers, in
float32, one thread. Either three in a hundred tokens stop a reply, or none. The ways take turns; ratios are of medians.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from job import surroundings
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.sampler import PolicySampler

ROWS, PROMPT, LONGEST, TURNS = 32, 32, 64, 5
# of the ways: whether the policy is merged, and whether finished rows leave
WAYS = {
    "adapter beside, rows stay": (False, False),
    "merged, rows stay": (True, False),
    "merged, rows leave": (True, True),
}
STOPPING = {"most stop early": 0.03, "none stops": 0.0}  # of the vocabulary, what stops


def rollout(base: Any, vocabulary: int, stops: float, merges: bool, leaves: bool) -> tuple[float, float]:
    """Seconds, and the mean length of a reply over the longest that it may be."""
    sampler = PolicySampler(base, torch.float32, 1.0, POLICY, may_round=False, merge=merges)
    stop_ids = list(range(10 + int(vocabulary * stops)))[10:]
    config = GenerationConfig(
        max_new_tokens=LONGEST, eos_token_id=stop_ids or None, pad_token_id=1, do_sample=True, top_k=0
    )
    torch.manual_seed(1)
    ids = torch.randint(10, vocabulary, (ROWS, PROMPT))
    begun = time.perf_counter()
    with torch.no_grad(), sampler(seed=0, leave=leaves):
        out = base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    seconds = time.perf_counter() - begun
    ended = torch.isin(out[:, PROMPT:], torch.tensor(stop_ids)).long()
    lengths = torch.where(ended.any(1), ended.argmax(1) + 1, LONGEST)
    return seconds, float(lengths.double().mean()) / LONGEST


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for vocabulary in (4096, 32000):
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=vocabulary, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=4
        )
        lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
        base = get_peft_model(AutoModelForCausalLM.from_config(shape), lora).eval().get_base_model()
        for name, stops in STOPPING.items():
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            length = 0.0
            for turn in range(TURNS + 1):  # the first warms up
                for way, how in WAYS.items():
                    took, length = rollout(base, vocabulary, stops, *how)
                    seconds[way] += [took] * (turn > 0)
            medians = [statistics.median(times) for times in seconds.values()]
            numbers = " | ".join(f"{median:.2f} ({median / medians[0]:.2f})" for median in medians)
            rows.append(f"| {vocabulary:,} | {name} ({length:.2f}) | {numbers} |")
            print(rows[-1], flush=True)
    versions = ", ".join(f"{name} {version}" for name, version in surroundings()["versions"].items())
    text = [
        "# A rollout's sampling on a CPU",
        "",
        f"`python benchmarks/sampling.py` makes this page: {versions}; {torch.backends.cpu.get_cpu_capability()}. "
        f"{ROWS} prompts of {PROMPT} tokens, {LONGEST} new ones at most, 8 layers, LoRA, float32, one thread; medians "
        f"of {TURNS}, in seconds and over the first way's.",
        "",
        "| vocabulary | replies (mean over longest) | " + " | ".join(WAYS) + " |",
        "|---|---|" + "---|" * len(WAYS),
        *rows,
        "",
    ]
    Path(__file__).with_name("SAMPLING.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
