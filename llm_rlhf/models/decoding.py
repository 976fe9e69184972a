"""Sampling from a model's own distribution, whatever its generation config would make of it.

`generate` fills in from the model's generation config whatever it was not given: repeated n-grams forbidden, tokens
suppressed, a length forced, beams. Then what is sampled is not what log-probabilities are read of, and PPO learns from
replies that its policy would not give. Sampling here takes nothing from that config but its token ids; the model keeps
it, so that it is saved with it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import GenerationConfig

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# What changes which token is sampled, beside temperature, top_k and top_p, which are always set anew.
DISTORTING = (
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "num_beams",
    "penalty_alpha",
    "dola_layers",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "watermarking_config",
    "min_length",
    "min_new_tokens",
    "stop_strings",
    "max_time",
)
_NEUTRAL = (None, False, 0, 0.0, 1, 1.0, [], {})


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
    found = {name: getattr(config, name, None) for name in DISTORTING}
    return {name: value for name, value in found.items() if value not in _NEUTRAL}
