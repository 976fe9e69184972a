"""Every causal class of transformers, built tiny from its own configuration, and what is expected of it under PPO.

The verdicts: EXACT (the joint call is the plain model, to the tolerance of test_causal_families.py), DEVIATES (it is,
but decoding is off by more, and a warning says so), REFUSED (PPOTrainer raises an error that says why), NOT_BUILT (no
tiny text model comes of its configuration). The table of docs/architectures.md is written from these:

    python tests/parity/causal_families.py
"""

import importlib.util
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

VOCABULARY = 272
LARGEST = 8_000_000  # parameters; more is not tiny

# ---- verdicts ------------------------------------------------------------------------------------------------------

_EXACT = """
    afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba beam bert-generation biogpt bitnet bloom codegen cohere
    cohere2 cohere2_moe cohere_compass_text ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge dots1
    dots3_note dots3_note_text emu3 ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo
    flint fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm
    glm4 glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss
    gptj granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text
    hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling2_text internlm3 iquestcoder jais2 jamba jetmoe
    kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama longcat_flash mamba mamba2 mellum mimo_v2_flash minicpm3
    minimax minimax_m2 ministral ministral3 mistral mixtral moss_transcribe_diarize mpt nanochat
    nemotron olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe
    qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp qwen4_exp_text seed_oss
    smollm3 solar_open stablelm starcoder2 vaultgemma xglm youtu zamba zaya
"""
EXACT = _EXACT.split()

# Decoding, in nats a token: while decoding, the step of a Mamba-2 state is not clamped as the forward clamps it.
DEVIATES = {"nemotron_h": 4e-4, "zamba2": 1.6e-3}

REFUSED: dict[str, tuple[str, str]] = {
    "the head is more than one product with the hidden states, or changes the logits in a way that TRL's fused head "
    "does not know": (
        r"TRL's fused head does not give \w+'s log-probabilities",
        "bert big_bird camembert data2vec-text electra ernie inkling_text megatron-bert modernbert-decoder prophetnet "
        "recurrent_gemma roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xlstm xmod",
    ),
    "positions are counted over the padding": (
        r"\w+ reads a row otherwise under left padding than alone",
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart trocr whisper xlm",
    ),
    "what stands under the padding is read": (
        r"\w+ reads what stands under the left padding",
        "blt cpmant deepseek_v4 minimax_m3_vl_text rwkv",
    ),
    "decoding is not the forward": (
        r"\w+ decodes otherwise than it reads under left padding",
        "git moshi xlnet",
    ),
    "the hidden states cannot be reached": (r"\w+ names no trunk", "llama4 llama4_text mllama"),
    "the head takes other states than the trunk gives": (
        r"RemBertForCausalLM could not take log-probabilities from its hidden states and its output embeddings",
        "rembert",
    ),
    "two rows of text cannot be read by themselves": (
        r"\w+ could not read two rows",
        "gemma4_unified_assistant reformer",
    ),
}

_MUSIC = "takes audio; transformers gives its decoder a configuration that does not fit"
NOT_BUILT: dict[str, tuple[str, str]] = {
    "gemma3n": ("wants the timm library for its images; `gemma3n_text` is its text model", "timm"),
    "gemma4_assistant": ("drafts for another model; its configuration has no defaults", "hidden_size_per_layer_input"),
    "musicgen": (_MUSIC, "no attribute 'dropout'"),
    "musicgen_melody": (_MUSIC, "no attribute 'dropout'"),
}

# What `all-linear` may not adapt: PEFT refuses Mamba's projections, which fast kernels read past the adapter; the
# others are no linear maps (recipes leave those out by themselves).
_MAMBA = ["out_proj", "conv1d"]
EXCLUDED: dict[str, list[str]] = {
    "deepseek_v4": ["o_a_proj"],
    "falcon_h1": _MAMBA,
    "falcon_mamba": _MAMBA,
    "llama4": ["router"],
    "llama4_text": ["router"],
    "mamba": _MAMBA,
    "mamba2": _MAMBA,
    "nemotron_h": _MAMBA,
    "phimoe": ["router"],
}

# Adapted layers that no gradient reaches: a discrete choice, a weight that is read past its adapter, a tower that text
# does not enter.
UNTRAINED: dict[str, str] = {
    r"indexer\.": "axk2 deepseek_v32 dots3_note dots3_note_text glm_moe_dsa hy_v4 qwen4_exp qwen4_exp_text",
    r"\.dt_proj\.": "falcon_mamba jamba mamba",
    r"\.correction_coefs\.": "gemma3n_text",
    r"\.router\.classifier\.": "longcat_flash",
    r"\.gate_up_proj_adapter_list\.": "zamba2",
    r"vision_|vit\.|image_|audio_|multi_modal_projector": (
        "dots3_note fuyu gemma3 got_ocr2 moss_transcribe_diarize phi4_multimodal"
    ),
}


def refused() -> dict[str, str]:
    """Every refused type and what it is told, as a regular expression."""
    return {name: message for message, names in REFUSED.values() for name in names.split()}


def untrained(name: str) -> str | None:
    return next((pattern for pattern, names in UNTRAINED.items() if name in names.split()), None)


def missing_library(name: str) -> bool:
    """Whether a type is not built for want of a library that this machine may have."""
    return name == "gemma3n" and importlib.util.find_spec("timm") is not None


def page_table() -> str:
    """The lines of docs/architectures.md on every causal model type."""
    rows = {
        f"exact ({len(EXACT)})": ", ".join(EXACT),
        f"with a warning ({len(DEVIATES)}): decoding is off, by nats a token": ", ".join(
            f"{name} ({size:g})" for name, size in DEVIATES.items()
        ),
    }
    for why, (_, names) in REFUSED.items():
        rows[f"refused ({len(names.split())}): {why}"] = ", ".join(names.split())
    rows[f"not tried ({len(NOT_BUILT)})"] = "; ".join(f"{name}: {why}" for name, (why, _) in NOT_BUILT.items())
    return "\n".join(["| | model types |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


# ---- sizes ---------------------------------------------------------------------------------------------------------

# Given where a configuration knows the name. Two layers, or one of every kind where there are kinds; windows, chunks
# and budgets of attention shorter than the rows. Sparse indexers have many heads, since scores of few heads tie
# at 0, and ties are broken otherwise in another shape.
GENERIC: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
    "initializer_range": 0.2, "init_std": 0.2, "is_decoder": True, "use_cache": True, "type_vocab_size": 1,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "emb_dim", "dim_model", "hidden_dim",
                     "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "num_layers",
                     "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads",
                     "attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "kv_channels"), 8), "num_key_value_heads": 2,
    **dict.fromkeys(("intermediate_size", "n_inner", "dff", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff",
                     "ffn_hidden_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size",
                     "shared_intermediate_size"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions", "max_source_positions",
                     "max_seq_len"), 128),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16, "index_n_heads": 32, "index_head_dim": 16, "index_topk": 8,
    **dict.fromkeys(("sliding_window", "attention_window", "window_size"), 6), "mamba_chunk_size": 8,
    "use_sliding_window": True, "max_window_layers": 1, "no_rope_layer_interval": 2,
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
# Of GENERIC, what a configuration has and may not be given.
KEPT = {
    "gpt_neo": ("num_hidden_layers",),
    "prophetnet": ("num_hidden_layers",),
    "recurrent_gemma": ("layer_types",),
    "xlnet": ("max_position_embeddings",),
    "xlstm": ("qk_head_dim", "v_head_dim"),
}

_MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_ssm": 64}
_HYBRID = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
_ALTERNATING = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 2}
_GEMMA_4 = {
    **_ALTERNATING, **_PER_LAYER, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
    "moe_intermediate_size": 24, "num_attention_heads": 4, "head_dim": 8, "global_head_dim": 8,
}  # fmt: skip
_LATENT = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_BYTES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "initializer_range": 0.2}
SIZES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA_2, "num_hidden_layers": 2, "attn_layer_indices": [1]},
    "blt": {
        "encoder_config": {**_BYTES, "hidden_size_global": 64, "num_hidden_layers": 1},
        "decoder_config": {**_BYTES, "hidden_size_global": 64, "num_hidden_layers": 2},
        "global_config": {**_BYTES, "hidden_size": 64, "num_hidden_layers": 2},
        "vocab_size": 260, "encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4],
    },
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 4.0},
    "cohere2": {"logit_scale": 4.0},
    "cohere2_moe": {"logit_scale": 4.0},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2,
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "deepseek_v4": {
        "o_groups": 2, "o_lora_rank": 8, "head_dim": 16, "num_key_value_heads": 1, "partial_rotary_factor": 0.5,
        "num_hidden_layers": 3, "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "dots3_note_text": {
        **_LATENT, **{f"swa_{key}": value for key, value in _LATENT.items()}, "num_hidden_layers": 2,
        "layer_types": ["indexed_attention", "sliding_attention"], "shared_experts_intermediate_size": 24,
    },
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "doge": {"keep_window_size": 8},
    "falcon_h1": _MAMBA_2,
    "flint": {"mlp_only_layers": [0]},
    "gemma3n_text": {
        **_ALTERNATING, **_PER_LAYER, "laurel_rank": 8, "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _GEMMA_4,
    "gemma4_unified_text": _GEMMA_4,
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA_2, **_HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 3},
    "inkling2_text": {"n_layers_per_attn_res_block": 2},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "laguna": {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8},
    "minicpm3": {"scale_emb": 2.0, "dim_model_base": 16},
    "minimax": {"block_size": 4},
    "minimax_m3_vl_text": {
        "num_hidden_layers": 2, "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"], "dense_intermediate_size": 48,
        "index_n_heads": 2, "index_block_size": 16, "index_topk_blocks": 2,  # as much as the shortest check reads
    },
    "nemotron_h": {
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 8, "expand": 2,
        "moe_shared_expert_intermediate_size": 24,
    },
    "phi4_multimodal_audio": {"num_blocks": 1},
    "qwen4_exp_text": {
        "indexer_n_heads": 32, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4, "ple_layer_ids": [1], "ple_embed_dim": 32, "heads_per_ngram": 2,
        "ngram_vocab_size_base": 100, "split_ngram_parts": 2, "hc_lowrank": 8, "make_ngram_vocab_size_divisible_by": 8,
    },
    "recurrent_gemma": {"intermediate_size": 96, "num_hidden_layers": 3},
    "reformer": {
        "num_hidden_layers": 3, "axial_pos_embds": False, "attention_head_size": 8, "feed_forward_size": 48,
        "num_buckets": 4,
        "attn_layers": ["local", "lsh", "local"], "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
    },
    "roc_bert": {"pronunciation_vocab_size": 12, "shape_vocab_size": 12, "pronunciation_embed_dim": 8,
                 "shape_embed_dim": 8},
    "xlstm": {"num_heads": 4, "num_blocks": 2, "num_hidden_layers": 2, "hidden_size": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3, "mamba_dt_rank": 4, "n_mamba_heads": 2, "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "n_mamba_heads": 8, "chunk_size": 8,
        "num_hidden_layers": 3, "adapter_rank": 4, "num_key_value_heads": 4,
    },
    "zaya": {
        "num_hidden_layers": 2, "layer_types": ["hybrid", "hybrid_sliding"], "num_experts_per_tok": 1,
        "router_hidden_size": 16,
    },
}  # fmt: skip


def tiny(name: str) -> Any:
    """A model of random weights, wide enough that a missing position, scale or bias shows; biases are random too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_tiny(AutoConfig.for_model(name)), dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) < LARGEST
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _tiny(config: PreTrainedConfig, own: dict[str, Any] | None = None) -> PreTrainedConfig:
    """The same configuration class with the sizes above."""
    own = SIZES.get(config.model_type, {}) if own is None else own
    sizes = {key: size for key, size in GENERIC.items() if _takes(config, key)}
    if "kv_lora_rank" in sizes:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if not own.keys() & {"layer_types", "layers_block_type"}:
        sizes |= _every_kind(config)
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if part is not None and "hidden_size" not in own.get(key, {}):
            sizes[key] = _tiny(part, own.get(key))
            own = {other: size for other, size in own.items() if other != key}
    return type(config)(**{**sizes, **own})


def _takes(config: PreTrainedConfig, key: str) -> bool:
    known = getattr(type(config), config.attribute_map.get(key, key), None)
    if key in KEPT.get(config.model_type, ()) or (isinstance(known, property) and known.fset is None):
        return False
    try:
        return hasattr(config, key)
    except Exception:  # some raise another error than AttributeError for what differs from layer to layer
        return False


def _every_kind(config: PreTrainedConfig) -> dict[str, Any]:
    """A layer of every kind that the family's own configuration has, in its order."""
    given = {key: getattr(config, key) for key in ("layer_types", "mlp_layer_types") if _takes(config, key)}
    kinds = {key: list(dict.fromkeys(types)) for key, types in given.items() if types and len(set(types)) > 1}
    if not kinds or not _takes(config, "num_hidden_layers"):
        return {}
    layers = max(2, *(len(found) for found in kinds.values()))
    return {"num_hidden_layers": layers, **{key: (found * layers)[:layers] for key, found in kinds.items()}}


if __name__ == "__main__":
    print(page_table())
