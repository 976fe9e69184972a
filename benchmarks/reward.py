"""Pairs a second of `RewardModel.score`, against the loop that people write: 16 conversations a batch, in file order.

    python benchmarks/reward.py                               # synthetic pairs as long as HH's; writes REWARD.md
    python benchmarks/reward.py --data hh/test.jsonl.gz       # a file of HH-like pairs, in a BPE learned from it
    python benchmarks/reward.py --pairs 16 --rounds 1         # does it run?

The model is the 10.5M-parameter Llama of cpu.py with random weights and a LoRA reward adapter, in float32. A round is
one reading of the same pairs by each column, one after the other; every second round goes backwards. Ratios are taken
inside a round. Scores are checked to agree to 1e-4.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import torch
import transformers
import trl
from cpu import LLAMA
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from workers import HERE, provenance, provenance_lines

from llm_rlhf import RewardModel
from llm_rlhf.data.rows import Conversation
from llm_rlhf.data.sources import load_preferences
from llm_rlhf.recipe.sections import Source
from llm_rlhf.world.base_model import CHAT_TEMPLATE, EOS, PAD, ROLE_TOKENS, train_tokenizer

VOCABULARY, CONTEXT = 4096, 4096
COLUMNS = {
    "loop": "loop: batch of 16, file order, padded to its longest",
    "sorted": "RewardModel, every conversation by itself (`reading = 'rows'`)",
    "ours": "RewardModel",
}
# Tokens of HH harmless-base/test (2,312 pairs) by GPT-2's tokenizer, at these quantiles; the logarithms of the lengths
# of a prompt and its replies correlate by about a quarter.
QUANTILES = (0, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1)
PROMPT_TOKENS = (11, 16, 18, 31, 98, 171, 277, 352, 551, 856)
REPLY_TOKENS = (2, 7, 10, 17, 32, 61, 103, 132, 230, 572)
CORRELATION = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a source of pairs: JSONL, or what a recipe takes")
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.data:
        pairs, tokenizer = read(options.data, options.pairs)
    else:
        pairs, tokenizer = synthetic(options.pairs)
    with tempfile.TemporaryDirectory() as temporary:
        readers = prepare(Path(temporary), tokenizer)
        conversations = [talk for pair in pairs for talk in pair]
        lengths = [len(ids) for ids in tokenizer.apply_chat_template(conversations, return_dict=True)["input_ids"]]
        records = measure(readers, conversations, options.rounds)
    text = report(records, lengths, options.data)
    print(text)
    if not options.data and options.rounds >= 5 and options.pairs >= 120:  # anything less is only shown
        (HERE / "REWARD.md").write_text(text)


Reader = Callable[[list[Conversation]], np.ndarray]


def measure(readers: dict[str, Reader], conversations: list[Conversation], rounds: int) -> list[dict[str, Any]]:
    expected = {name: reader(conversations[:32]) for name, reader in readers.items()}  # warms up
    records = []
    for number in range(rounds):
        for name in list(readers) if number % 2 == 0 else reversed(readers):
            started = time.perf_counter()
            expected[name] = readers[name](conversations)
            seconds = time.perf_counter() - started
            records.append({"round": number, "column": name, "pairs_per_second": len(conversations) / 2 / seconds})
            print(f"round {number + 1}, {name}: {records[-1]['pairs_per_second']:.2f} pairs a second", flush=True)
    for name, scores in expected.items():
        off = float(np.abs(scores - expected["loop"]).max())
        if not off <= 1e-4:
            raise RuntimeError(f"The columns give different scores: {name} is off by {off:.2g}.")
    return records


def report(records: list[dict[str, Any]], lengths: list[int], data: str | None) -> str:
    packages = (torch, transformers, trl, peft, accelerate)
    versions = {package.__name__: package.__version__ for package in packages}
    facts = provenance([{"column": "shared", "versions": versions, "threads": torch.get_num_threads()}])
    rounds = 1 + max(r["round"] for r in records)
    middle, high, longest = np.quantile(lengths, [0.5, 0.9, 1.0])
    what = f"from {Path(data).name}" if data else "made up, as long as those of HH harmless-base/test"
    lines = ["# Reward models: pairs scored a second", "", *provenance_lines(facts), ""]
    lines += [
        f"{len(lengths) // 2} pairs {what}: {np.mean(lengths):.0f} tokens a conversation, median {middle:.0f}, 90 % "
        f"under {high:.0f}, longest {longest:.0f}. A Llama of 10.5M parameters with a LoRA adapter, "
        f"float32. Tokenising is part of the time. Medians of {rounds} rounds [least, greatest]; scores agree to 1e-4.",
        "",
        "| | pairs a second | times the loop |",
        "|---|---|---|",
    ]
    of = {name: [r["pairs_per_second"] for r in records if r["column"] == name] for name in COLUMNS}
    in_order = {name: sorted((r for r in records if r["column"] == name), key=lambda r: r["round"]) for name in COLUMNS}
    for name, label in COLUMNS.items():
        pairs = zip(in_order[name], in_order["loop"], strict=True)
        ratios = [mine["pairs_per_second"] / loop["pairs_per_second"] for mine, loop in pairs]
        lines.append(
            f"| {label} | {statistics.median(of[name]):.1f} | "
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |"
        )
    return "\n".join(lines) + "\n"


# ---- the columns ---------------------------------------------------------------------------------------------------


def prepare(folder: Path, tokenizer: Any) -> dict[str, Reader]:
    """A base and a reward adapter as RewardTrainer leaves them, and the columns that read them."""
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    shape = {**LLAMA, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape, **ids)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lora = LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear", modules_to_save=["score"])
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    get_peft_model(model, lora).save_pretrained(folder / "reward")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    plain = PeftModel.from_pretrained(base, str(folder / "reward")).eval()
    right_padding = AutoTokenizer.from_pretrained(folder / "base", padding_side="right")
    ours, by_rows = (RewardModel.from_pretrained(folder / "reward") for _ in range(2))
    assert ours.reading == "packed"
    by_rows.reading = "rows"
    return {
        "loop": lambda conversations: loop(plain, right_padding, conversations),
        "sorted": by_rows.score,
        "ours": ours.score,
    }


@torch.no_grad()
def loop(model: Any, tokenizer: Any, conversations: list[Conversation], batch_size: int = 16) -> np.ndarray:
    """What people write."""
    scores = []
    for start in range(0, len(conversations), batch_size):
        texts = tokenizer.apply_chat_template(conversations[start : start + batch_size], tokenize=False)
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        scores += logits[:, 0].tolist()
    return np.array(scores)


# ---- the pairs -----------------------------------------------------------------------------------------------------


def read(source: str, count: int) -> tuple[list[tuple[Conversation, Conversation]], Any]:
    """The first pairs of a source, in its order, and a BPE learned from all of them."""
    rows = load_preferences([Source(source=source)]).rows
    pairs = [
        ([*row.prompt, reply(row.chosen)], [*row.prompt, reply(row.rejected)]) for row in rows
    ]  # fmt: skip
    return pairs[:count], train_tokenizer([talk for pair in pairs for talk in pair], VOCABULARY, CONTEXT)


def synthetic(count: int) -> tuple[list[tuple[Conversation, Conversation]], Any]:
    """Pairs of random words, as long as HH's, and a tokenizer of one word a token."""
    rng = np.random.default_rng(0)
    covariance = np.full((3, 3), CORRELATION) + (1 - CORRELATION) * np.eye(3)
    normal = rng.multivariate_normal(np.zeros(3), covariance, count)
    ranks = np.vectorize(statistics.NormalDist().cdf)(normal)
    prompts, chosen, rejected = (
        np.exp(np.interp(ranks[:, i], QUANTILES, np.log(tokens))).astype(int)
        for i, tokens in enumerate((PROMPT_TOKENS, REPLY_TOKENS, REPLY_TOKENS))
    )
    words = [f"w{i}" for i in range(VOCABULARY - 2 - len(ROLE_TOKENS))]
    vocabulary = {word: i for i, word in enumerate([EOS, PAD, *ROLE_TOKENS, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=EOS, pad_token=PAD, extra_special_tokens=list(ROLE_TOKENS)
    )
    tokenizer.chat_template = CHAT_TEMPLATE

    def text(tokens: int) -> str:
        return " ".join(rng.choice(words, size=max(1, tokens)))

    pairs = []
    for p, c, r in zip(prompts, chosen, rejected, strict=True):
        prompt = [{"role": "user", "content": text(p - 2)}]
        pairs.append(([*prompt, reply(text(c - 1))], [*prompt, reply(text(r - 1))]))
    return pairs, tokenizer


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


if __name__ == "__main__":
    main()
