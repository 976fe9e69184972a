"""How far what is exported is from the policy as it was trained, on replies of the run's own evaluation.

A policy that was trained on a quantised base is exported on the unquantised one, and a merge rounds: what was measured
of the one holds for the other as far as they are the same. Both read the same tokens, one row at a time.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Message
from llm_rlhf.export.source import Source
from llm_rlhf.launch import processes
from llm_rlhf.models.adapters import onto_device_of
from llm_rlhf.models.base import load_causal_lm
from llm_rlhf.models.encoding import encode_turns
from llm_rlhf.models.thoughts import KEY

REPLIES = 32  # read by both


class Difference(NamedTuple):
    replies: int
    tokens: int
    kl: float  # nats a token, of the export from the policy as trained, on the policy's own replies
    largest: float  # difference of a token's log-probability
    agreement: float  # share of the tokens at which both find the same token likeliest

    def __str__(self) -> str:
        return (
            f"on {self.tokens:,} tokens of {self.replies} replies of its evaluation: KL {self.kl:.2g} nats a token, "
            f"the largest difference of a log-probability {self.largest:.2g}; both find the same token likeliest at "
            f"{self.agreement:.1%}"
        )


class Read(NamedTuple):
    logprobs: Tensor  # of every token of every reply, one after the other
    likeliest: Tensor  # token ids


def rows_of(source: Source) -> list[tuple[list[int], int]]:
    """Some of the replies, chosen by a hash of the prompt: token ids with the prompt's, and where the reply begins.

    A reply begins with its thought, and ends with the stop token only where it stopped by itself: nothing is read that
    the policy did not say.
    """
    replies = sorted(source.replies, key=lambda row: prompt_share(row["prompt"], "export"))[:REPLIES]
    turns: list[Message] = [{"role": "assistant", "content": r["reply"], KEY: r.get("thought", "")} for r in replies]
    encoded = encode_turns(source.tokenizer, [r["prompt"] for r in replies], turns)
    return [
        (row.ids if reply["stopped"] else row.ids[:-1], len(row.prompt_ids))
        for row, reply in zip(encoded, replies, strict=True)
    ]


def as_trained(source: Source, rows: Sequence[tuple[list[int], int]]) -> Read:
    """By the base as it was held in memory, with the policy's adapter."""
    model = load_causal_lm(source.subject.base, source.section, source.tokenizer)
    if source.subject.adapter is not None:
        model = PeftModel.from_pretrained(model, source.subject.adapter, **onto_device_of(model))
    return _read(model, rows)


def as_exported(folder: Path, trust_remote_code: bool, rows: Sequence[tuple[list[int], int]]) -> Read:
    """As anybody reads the folder."""
    adapter = (folder / "adapter_config.json").is_file()
    kind = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    return _read(kind.from_pretrained(folder, dtype="auto", trust_remote_code=trust_remote_code), rows)


def difference(trained: Read, exported: Read, replies: int) -> Difference:
    """KL by the estimator (r - 1) - log r with r the exported model's probability over the trained one's, which is
    never below 0 (Schulman 2020, "Approximating KL divergence", k3)."""
    log_ratio = (exported.logprobs - trained.logprobs).double()
    return Difference(
        replies,
        len(log_ratio),
        float((log_ratio.exp() - 1 - log_ratio).mean()),
        float(log_ratio.abs().max()),
        float((exported.likeliest == trained.likeliest).double().mean()),
    )


def _read(model: Any, rows: Sequence[tuple[list[int], int]]) -> Read:
    quantized = getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None
    model = (model if quantized else model.to(processes().device)).eval()
    logprobs, likeliest = [], []
    with torch.no_grad():
        for ids, start in rows:
            tokens = torch.tensor([ids], device=model.device)
            logits = model(input_ids=tokens).logits[0, start - 1 : -1].float()
            logprobs.append(logits.log_softmax(-1).gather(1, tokens[0, start:, None]).squeeze(1).cpu())
            likeliest.append(logits.argmax(-1).cpu())
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return Read(torch.cat(logprobs), torch.cat(likeliest))
