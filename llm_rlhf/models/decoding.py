"""Sampling from a model's own distribution, whatever its generation config would make of it.

`generate` fills in from the model's generation config whatever it was not given: repeated n-grams forbidden, tokens
suppressed, a length forced, beams. Then what is sampled is not what log-probabilities are read of, and PPO learns from
replies that its policy would not give. Sampling here takes nothing from that config but its token ids; the model keeps
it, so that it is saved with it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# What changes which token is sampled, beside temperature, top_k and top_p, which are always set anew; with the value,
# other than none at all, that changes nothing.
DISTORTING: dict[str, Any] = {
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": [],
    "sequence_bias": {},
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "stop_strings": [],
    "max_time": None,
}


def sampling_config(stop: int | list[int], pad: int | None, bos: int | None = None, **drawn: Any) -> GenerationConfig:
    """The generation config of a policy: it samples as it was trained to, and ends where it learnt to.

    `generate` and servers take what it does not say from defaults of their own (top_k 50 is one), so that it says all.

    Args:
        stop, pad, bos: token ids.
        drawn: temperature, top_p, top_k, min_p or repetition_penalty where they are not 1, 1, 0, None and 1.
    """
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    return GenerationConfig(do_sample=True, eos_token_id=stop, pad_token_id=pad, bos_token_id=bos, **{**plain, **drawn})


def save_language(folder: Path, tokenizer: Any, stops: list[int], **drawn: Any) -> None:
    """What else than weights it takes to talk to a policy: tokens, template, where it stops, how it was sampled."""
    tokenizer.save_pretrained(folder)
    sampling_config(stops, tokenizer.pad_token_id, tokenizer.bos_token_id, **drawn).save_pretrained(folder)


@contextlib.contextmanager
def plain_decoding(model: Any) -> Iterator[None]:
    """While it lasts, `model.generate` takes nothing but token ids from the model's generation config."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    base.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in TOKEN_IDS})
    try:
        yield
    finally:
        base.generation_config = own


def left_out(config: GenerationConfig) -> dict[str, Any]:
    """The settings of a generation config that `plain_decoding` leaves out and that would have changed replies."""
    asked = {name: getattr(config, name, None) for name in DISTORTING}
    return {name: value for name, value in asked.items() if value is not None and value != DISTORTING[name]}
