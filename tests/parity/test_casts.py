"""Adapters in float32 under bfloat16 autocast: fewer copies, the same bits."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_rlhf.models.base import leave_casts_to_autocast

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1,
)  # fmt: skip
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


class Copies(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


def step(model) -> tuple[torch.Tensor, dict[str, torch.Tensor], int, int]:
    """Logits, gradients, and the copies that forward and backward make."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16), Copies() as forward:
        logits = model(IDS).logits
    with Copies() as backward:
        logits.float().log_softmax(-1)[..., 5].sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients, *(count.seen["aten._to_copy.default"] for count in (forward, backward))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_casts_are_left_to_autocast_without_a_bits_difference(checkpointing) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, lora, autocast_adapter_dtype=True)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with torch.no_grad():
        outside = model(IDS).logits
    logits, gradients, forward, backward = step(model)
    leave_casts_to_autocast(model)
    fewer, same, forward_now, backward_now = step(model)
    assert torch.equal(fewer, logits)
    assert len(gradients) == 2 * 2 * 7
    assert all(torch.equal(same[name], gradient) for name, gradient in gradients.items())
    assert forward - forward_now == 2 * 2 * 7  # to float32 and back, of 7 linear maps in 2 layers
    # and backwards, but for the three that read embeddings, which are frozen; checkpointed, they are computed again too
    assert backward - backward_now == (4 * 2 * 7 if checkpointing else 2 * (2 * 7 - 3))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, outside)  # where no autocast casts, PEFT does
