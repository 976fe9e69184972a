"""Byte-level tokenizers that carry the chat templates of well-known families, as TRL ships them for its own tests."""

from pathlib import Path
from typing import NamedTuple

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Of the tests' own base: a reply with its thought before it.
THINKING = (
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'assistant' -%}"
    "<|assistant|>{{ '<think>' + (m.get('reasoning_content') or '') + '</think>' + m['content'] + eos_token }}"
    "{%- else -%}{{ '<|' + m['role'] + '|>' + m['content'] }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


class Family(NamedTuple):
    template: str  # a file of TRL's
    eos: str  # the token that ends the assistant's turn
    bos: str | None
    markers: tuple[str, ...]  # the other tokens that its tokenizer marks special, without a role of their own
    name: str  # as people call it


FAMILIES = {
    "llama3": Family(
        "llama3", "<|eot_id|>", "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>"), "Llama 3"
    ),
    "qwen2_5": Family("qwen2_5", "<|im_end|>", None, ("<|im_start|>", "<|endoftext|>"), "Qwen 2.5"),
    "qwen3": Family("qwen3", "<|im_end|>", None, ("<|im_start|>", "<|endoftext|>"), "Qwen 3"),
    "qwen3_5": Family("qwen3_5_think", "<|im_end|>", None, ("<|im_start|>", "<|endoftext|>"), "Qwen 3.5 (thinking)"),
    "qwen3_8": Family("qwen3_8", "<|im_end|>", None, ("<|im_start|>", "<|endoftext|>"), "Qwen 3.8"),
    "nemotron": Family("nemotron_3_nano", "<|im_end|>", None, ("<|im_start|>", "<|endoftext|>"), "Nemotron 3 Nano"),
    "llama3_2": Family(
        "llama3_2", "<|eot_id|>", "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>"), "Llama 3.2"
    ),
    "gemma4": Family("gemma4_v5", "<turn|>", "<bos>", ("<|turn>", "<|channel>", "<channel|>"), "Gemma 4"),
    "phi3": Family("phi3", "<|end|>", "<s>", ("<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"), "Phi-3"),
    "gemma": Family("gemma", "<end_of_turn>", "<bos>", ("<start_of_turn>", "<eos>"), "Gemma, Gemma 2"),
    "deepseekv3": Family(
        "deepseekv3",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
        "DeepSeek-V3",
    ),
    "gptoss": Family("gptoss", "<|return|>", None, ("<|start|>", "<|message|>", "<|channel|>", "<|end|>"), "GPT-OSS"),
}


def stand_in(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with the family's template and special tokens; only EOS, BOS and padding have a role."""
    kind = FAMILIES[family]
    named = [kind.eos, *([kind.bos] if kind.bos else []), "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*named, *alphabet])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*named, *kind.markers)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=kind.eos, bos_token=kind.bos, pad_token="<|pad|>", padding_side="left"
    )
    tokenizer.chat_template = (TEMPLATES / f"{kind.template}.jinja").read_text(encoding="utf-8")
    return tokenizer
