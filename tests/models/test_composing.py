"""One adapter in place of two: it must do what the second does on the base that the first was merged into."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_helpers import grown_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from llm_rlhf.models.composing import compose, copies_of_the_base, why_not


def adapter(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(10, 40)[None]).logits.log_softmax(-1)


PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5, "layers.0.mlp.up_proj": 3}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"r": 2, "lora_alpha": 3}, {"r": 5, "lora_alpha": 4}),
        ({"use_rslora": True, "r": 3}, {"r": 5, "lora_alpha": 4}),
        ({"target_modules": ["q_proj", "up_proj"]}, {"target_modules": ["v_proj", "q_proj"]}),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {"target_modules": r".*layers\.0.*k_proj"}),
        (PATTERNS, {"use_rslora": True, **PATTERNS}),
        ({"exclude_modules": ["down_proj"]}, {}),
    ],
)
def test_two_adapters_are_one(base_folder, tmp_path, first, second) -> None:
    one = adapter(base_folder, tmp_path / "one", 1, **first)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), one).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    two = adapter(tmp_path / "merged", tmp_path / "two", 2, **second)
    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), two))
    composed = compose([one, two], "some/base")
    composed.config.save_pretrained(tmp_path / "both")
    save_file(composed.weights, tmp_path / "both" / "adapter_model.safetensors", metadata={"format": "pt"})
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "both")
    torch.testing.assert_close(logits(found), expected, atol=2e-5, rtol=3e-5)  # float32 sums in another order
    assert not torch.allclose(logits(merged), expected, atol=1e-2)  # the second does something
    assert found.peft_config["default"].base_model_name_or_path == "some/base"


def test_by_hand(tmp_path) -> None:
    """A1 = [1 2], B1 = [3; 4] at scale 2/1; A2 = [5 6], B2 = [7; 8] at scale 3/1: B A = 2 B1 A1 + 3 B2 A2."""
    for name, (down, up, alpha) in {"a": ([1, 2], [3, 4], 2), "b": ([5, 6], [7, 8], 3)}.items():
        LoraConfig(task_type="CAUSAL_LM", r=1, lora_alpha=alpha, target_modules=["x"]).save_pretrained(tmp_path / name)
        weights = {"base_model.model.x.lora_A.weight": torch.tensor([down]).float(),
                   "base_model.model.x.lora_B.weight": torch.tensor(up).float()[:, None]}  # fmt: skip
        save_file(weights, tmp_path / name / "adapter_model.safetensors")
    found = compose([tmp_path / "a", tmp_path / "b"], "some/base")
    down, up = (found.weights[f"base_model.model.x.lora_{side}.weight"] for side in "AB")
    assert (up @ down).tolist() == [[6 + 105, 12 + 126], [8 + 120, 16 + 144]]
    assert (found.config.r, found.config.lora_alpha, found.config.use_rslora) == (2, 2, False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, r"no linear layer \(model.embed_tokens\)"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes its base"),
    ],
)
def test_what_is_more_than_lora_is_named(base_folder, tmp_path, options, reason) -> None:
    folder = adapter(base_folder, tmp_path / "adapter", 1, **options)
    with pytest.raises(ValueError, match=f"cannot be added to another: it .*{reason}"):
        compose([folder], "some/base")


def test_embeddings_that_were_grown_are_known(base_folder, tmp_path, tokenizer) -> None:
    folder = grown_adapter(base_folder, tmp_path / "grown", "CAUSAL_LM", len(tokenizer) + 1)
    assert why_not(folder) is None
    assert copies_of_the_base(folder)
    assert all("lora_" in key for key in compose([folder], "some/base").weights)
