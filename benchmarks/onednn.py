"""Float32 products by oneDNN against torch's own by MKL, on a CPU where llm_rlhf/models/products.py takes the former.

    python benchmarks/onednn.py                           # six minutes; prints two tables
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/onednn.py   # oneDNN without AVX-512

Products of one shape; then a Llama of two layers that trains on batches of ever new lengths, each way for 40 seconds in
a process of its own: the steps that it makes, and by how many MiB it grows after the first.
"""

import json
import os
import random
import sys
import time

import torch
from workers import run

from llm_rlhf.models import products

WAYS = {"MKL": None, "oneDNN, 32 shapes kept": 32, "oneDNN, 1,024 kept": 1024}
SECONDS = 40


def rate(rows: int, inner: int, outer: int) -> float:
    """GFLOP/s, of the fastest of five."""
    x, weight, best = torch.randn(rows, inner), torch.randn(outer, inner), 0.0
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(20):
            products.product(x, weight)
        best = max(best, 20 * 2e-9 * rows * inner * outer / (time.perf_counter() - begun))
    return best


def train(lora: bool) -> dict[str, float]:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from llm_rlhf.models.base import adapters_in_float32
    from llm_rlhf.models.freed_memory import keep_freed_memory

    keep_freed_memory("cpu")
    torch.manual_seed(0)
    random.seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2000, num_hidden_layers=2, **shape))
    if lora:
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    adapters_in_float32(model)
    steps, first, begun = 0, 0.0, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        ids = torch.randint(0, 2000, (4, random.randrange(20, 150)))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()
        steps += 1
        first = first or resident()
    return {"steps": steps, "grown": resident() - first}


def resident() -> float:
    """MiB of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    if not products.ONEDNN_IS_FASTER:
        sys.exit("On this CPU torch's own products are taken; there is nothing to compare.")
    print("| rows, inputs, outputs | MKL, GFLOP/s | oneDNN |\n|---|---|---|")
    for shape in ((768, 256, 1024), (768, 256, 256), (32, 256, 1024)):
        found = []
        for products.ONEDNN_IS_FASTER in (False, True):
            found.append(rate(*shape))
        print(f"| {' x '.join(map(str, shape))} | {found[0]:.0f} | {found[1]:.0f} |", flush=True)
    print("\n| trained on random lengths | by | steps | grown by, MiB |\n|---|---|---|---|")
    for lora in (True, False):
        for way, kept in WAYS.items():
            for variable in products.CACHE_CAPACITIES if kept else ():
                os.environ[variable] = str(kept)
            of = run("onednn.py", way, json.dumps(lora))
            print(f"| {'LoRA' if lora else 'all weights'} | {way} | {of['steps']} | {of['grown']:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        products.ONEDNN_IS_FASTER = WAYS[sys.argv[1]] is not None
        print(json.dumps(train(json.loads(sys.argv[2]))))
    else:
        main()
