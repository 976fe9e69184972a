"""PPO steps of a model with adapters that the forward never reads, which test_processes.py lets two processes take."""

from pathlib import Path

import torch
from peft import LoraConfig
from ppo_helpers import make_trainer
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM


def main(tokenizer_folder: Path, scratch: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.2}
    stop = {"eos_token_id": AutoTokenizer.from_pretrained(tokenizer_folder).eos_token_id, "pad_token_id": None}
    model = MambaForCausalLM(MambaConfig(vocab_size=300, **sizes, **stop))
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["in_proj", "dt_proj"])  # of dt_proj: the weight alone
    trainer = make_trainer(
        tokenizer_folder, scratch, None, rows=4, per_device_train_batch_size=2, model=model, lora=lora, use_cpu=True,
        reward_funcs=[lambda completions, **_: [float(len(c[0]["content"])) for c in completions]],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps > 1
