"""What PPO's sampling gains on a CPU: with the adapter beside the base or merged, finished rows staying or not.

    python benchmarks/sampling.py       # ten minutes; writes SAMPLING.md beside this file

32 prompts of 32 tokens, up to 64 new ones, a random Llama of 8 layers with LoRA of rank 16 on all linear layers, in
float32, one thread. Either three in a hundred tokens stop a reply, or none. The ways take turns; ratios are of medians.

Then four times as many prompts where there is room for 32 at once: in parts, one after the other, or by continuous
batching, where a finished reply makes room for the next prompt. There steps are counted too: forwards of the model.

And replies by transformers' cache, which joins all keys and values anew for each token, or by one with room for more.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from job import surroundings
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, LlamaConfig

from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.sampler import PolicySampler
from llm_rlhf.ppo.sampling import continuous_batches

ROWS, PROMPT, LONGEST, TURNS, PARTS, VOCABULARIES = 32, 32, 64, 5, 4, (4096, 32000)
PAGE = 32  # tokens of a page of the engine's cache; three hold a prompt and its reply
# of the ways: whether the policy is merged, and whether finished rows leave
WAYS = {
    "adapter beside, rows stay": (False, False),
    "merged, rows stay": (True, False),
    "merged, rows leave": (True, True),
}
LENGTHS = ((32, 32, 64), (16, 256, 256))  # of the two caches: prompts, their tokens, new ones
STOPPING = {"most stop early": 0.03, "none stops": 0.0}  # of the vocabulary, what stops


def policy(vocabulary: int) -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=4
    )
    lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_config(shape), lora).eval().get_base_model()


def prompts(vocabulary: int, rows: int, tokens: int = PROMPT) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(10, vocabulary, (rows, tokens))


def how_to_sample(vocabulary: int, stops: float, new_tokens: int = LONGEST) -> GenerationConfig:
    stop_ids = list(range(10, 10 + int(vocabulary * stops)))
    return GenerationConfig(
        max_new_tokens=new_tokens, eos_token_id=stop_ids or None, pad_token_id=1, do_sample=True, top_k=0
    )


def rollout(base: Any, ids: torch.Tensor, config: GenerationConfig, merges: bool, leaves: bool) -> tuple[float, float]:
    """Seconds, and the mean length of a reply over the longest that it may be."""
    sampler = PolicySampler(base, torch.float32, 1.0, POLICY, may_round=False, merge=merges)
    begun = time.perf_counter()
    with torch.no_grad(), sampler(seed=0) as loop:
        loop.leave = leaves
        out = base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    seconds = time.perf_counter() - begun
    ended = torch.isin(out[:, ids.size(1) :], torch.tensor(config.eos_token_id or [])).long()
    longest = config.max_new_tokens
    lengths = torch.where(ended.any(1), ended.argmax(1) + 1, longest)
    return seconds, float(lengths.double().mean()) / longest


def in_parts(base: Any, ids: torch.Tensor, config: GenerationConfig) -> tuple[float, int]:
    """Seconds and steps of a rollout of which ROWS fit in at once, part by part."""
    sampler = PolicySampler(base, torch.float32, 1.0, POLICY, may_round=False, merge=True)
    begun = time.perf_counter()
    assert sampler.copy is not None
    with torch.no_grad(), sampler(seed=0), counting(sampler.copy.model) as steps:
        for part in ids.split(ROWS):
            base.generate(input_ids=part, attention_mask=torch.ones_like(part), generation_config=config)
    return time.perf_counter() - begun, len(steps)


def continuously(base: Any, ids: torch.Tensor, config: GenerationConfig) -> tuple[float, int]:
    """The same by the engine, which has room for as many tokens, and samples with the adapter beside the base."""
    room = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=-(-(PROMPT + LONGEST) // PAGE) * ROWS, max_requests_per_batch=ROWS,
        max_batch_tokens=ROWS * PROMPT,
    )  # fmt: skip
    begun = time.perf_counter()
    with counting(base) as steps:
        continuous_batches(base, ids.tolist(), config, room)
    return time.perf_counter() - begun, len(steps)


def by_both_caches(rows: int, tokens: int, new_tokens: int) -> list[float]:
    """Median seconds of sampling by transformers' cache, and by one with room."""
    vocabulary = VOCABULARIES[0]
    base, ids, config = policy(vocabulary), prompts(vocabulary, rows, tokens), how_to_sample(vocabulary, 0, new_tokens)
    joined, roomy = list[float](), list[float]()
    for turn in range(TURNS + 1):
        with mock.patch("llm_rlhf.models.decoding_loop.grow_in_place"):
            joined += [rollout(base, ids, config, True, True)[0]] * (turn > 0)
        roomy += [rollout(base, ids, config, True, True)[0]] * (turn > 0)
    return [statistics.median(joined), statistics.median(roomy)]


@contextlib.contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """One entry for each forward."""
    steps: list[int] = []
    hook = model.base_model.register_forward_hook(lambda *_: steps.append(1))
    try:
        yield steps
    finally:
        hook.remove()


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for vocabulary in VOCABULARIES:
        base, ids = policy(vocabulary), prompts(vocabulary, ROWS)
        for name, stops in STOPPING.items():
            config = how_to_sample(vocabulary, stops)
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            length = 0.0
            for turn in range(TURNS + 1):  # the first warms up
                for way, how in WAYS.items():
                    torch.manual_seed(2)
                    took, length = rollout(base, ids, config, *how)
                    seconds[way] += [took] * (turn > 0)
            medians = [statistics.median(times) for times in seconds.values()]
            numbers = " | ".join(f"{median:.2f} ({median / medians[0]:.2f})" for median in medians)
            rows.append(f"| {vocabulary:,} | {name} ({length:.2f}) | {numbers} |")
            print(rows[-1], flush=True)
    caches = []
    for rows_of, tokens, new_tokens in LENGTHS:
        joined, roomy = by_both_caches(rows_of, tokens, new_tokens)
        caches.append(f"| {rows_of} | {tokens} | {new_tokens} | {joined:.2f} | {roomy:.2f} ({roomy / joined:.2f}) |")
        print(caches[-1], flush=True)
    engine = []
    for vocabulary in VOCABULARIES:
        base = policy(vocabulary)
        for name, stops in STOPPING.items():
            for parts in (1, PARTS):
                found: dict[str, list[tuple[float, int]]] = {"parts": [], "engine": []}
                for turn in range(TURNS + 1):
                    for way, sample in (("parts", in_parts), ("engine", continuously)):
                        took = sample(base, prompts(vocabulary, parts * ROWS), how_to_sample(vocabulary, stops))
                        found[way] += [took] * (turn > 0)
                (mine, my_steps), (its, its_steps) = (
                    (statistics.median(s for s, _ in each), each[0][1]) for each in found.values()
                )
                engine.append(
                    f"| {vocabulary:,} | {name} | {parts * ROWS} | {my_steps} | {its_steps} "
                    f"({its_steps / my_steps:.2f}) | {mine:.2f} | {its:.2f} ({its / mine:.2f}) |"
                )
                print(engine[-1], flush=True)
    versions = ", ".join(f"{name} {version}" for name, version in surroundings()["versions"].items())
    text = [
        "# A rollout's sampling on a CPU",
        "",
        f"`python benchmarks/sampling.py` makes this page: {versions}; {torch.backends.cpu.get_cpu_capability()}. "
        f"{ROWS} prompts of {PROMPT} tokens, {LONGEST} new ones at most, 8 layers, LoRA (beside the base, by "
        "PEFT's own layers), float32, one thread; medians "
        f"of {TURNS}, in seconds and over the first way's.",
        "",
        "| vocabulary | replies (mean over longest) | " + " | ".join(WAYS) + " |",
        "|---|---|" + "---|" * len(WAYS),
        *rows,
        "",
        "## By a cache that has room",
        "",
        f"Merged, vocabulary {VOCABULARIES[0]:,}, none stops: seconds with transformers' cache, which joins all keys "
        "and values anew for each token, and with one that writes the new ones behind them.",
        "",
        "| prompts | their tokens | new tokens | joined anew | with room |",
        "|---|---|---|---|---|",
        *caches,
        "",
        "## By continuous batching",
        "",
        f"Where there is room for {ROWS} replies at once: the last way above, in parts, and transformers' engine with "
        "sdpa, whose every reply is masked from the tokens of the others, not spared them. Steps are forwards, those "
        "that read prompts among them.",
        "",
        "| vocabulary | replies | prompts | steps in parts | steps by the engine | seconds in parts | by the engine |",
        "|---|---|---|---|---|---|---|",
        *engine,
        "",
    ]
    Path(__file__).with_name("SAMPLING.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
