"""A class that stands in for vLLM's `LLM` where TRL puts it into the trainer's process, over a transformers model.

It refuses what vLLM 0.22.0 and 0.31.0 do by their sources, where it matters here: weights whose names or shapes its
model has not, sampling while any part of it sleeps, an adapter that it cannot read. Asleep at level 2 it forgets its
weights (they are NaN until they are sent), and without `enable_lora` it takes no adapter.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from model_helpers import quantized
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        assert self.lora_int_id >= 1
        assert self.lora_path


class Engine:
    """What TRL calls `LLM`; every one that is made is among `made`, the newest last."""

    made: list["Engine"] = []  # noqa: RUF012 - emptied by the fixture
    noise = 0.0  # added to logits, as if its kernels were others

    def __init__(self, model: str, enable_sleep_mode: bool = False, **options: Any) -> None:
        self.folder, self.sleeps, self.options = model, enable_sleep_mode, options
        assert options["logprobs_mode"] == "processed_logprobs"
        self.model = self.loaded()
        self.eos = AutoTokenizer.from_pretrained(model).eos_token_id
        self.asleep: set[str] = set()
        self.received: list[str] = []  # names of weights, in the order that they came
        self.calls: list[str] = []
        self.cached: dict[int, Any] = {}  # adapters that it has read, by number
        self.prefixes: set[tuple[str, tuple[int, ...]]] = set()  # prompts whose KV it keeps, by the adapter's name
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=worker), remove_lora=self.remove_lora
        )
        Engine.made.append(self)

    def loaded(self) -> Any:
        """A base of its own, from the folder; quantised as TRL asks, in the way that vLLM does where it can: to NF4."""
        if self.options["quantization"] == "bitsandbytes":
            return quantized(self.folder, "nf4").eval()
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def sleep(self, level: int = 1) -> None:
        assert self.sleeps, "sleep mode is not enabled"
        self.calls.append(f"sleep {level}")
        self.asleep = {"weights", "kv_cache"}
        if level == 2:
            for parameter in self.model.parameters():
                parameter.data.fill_(math.nan)

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {' '.join(tags)}")
        self.asleep -= set(tags)

    def reset_prefix_cache(self) -> None:
        self.prefixes.clear()

    @torch.no_grad()
    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        assert "weights" not in self.asleep, "weights are sent to memory that is not mapped"
        own = dict(self.model.named_parameters())
        for name, weight in weights:
            if name not in own:
                raise KeyError(f"There is no module or parameter named {name!r}")
            assert own[name].shape == weight.shape, (name, weight.shape)
            own[name].copy_(weight)
            self.received.append(name)

    def remove_lora(self, number: int) -> bool:
        self.calls.append(f"remove {number}")
        return self.cached.pop(number, None) is not None

    def policy(self, request: LoRARequest | None) -> Any:
        """What it samples from: its base, or a copy of that with the adapter it was asked for."""
        if request is None:
            return self.model
        assert self.options.get("enable_lora"), "LoRA is not enabled"
        if request.lora_int_id not in self.cached:  # a number that it knows is not read again
            config = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())
            assert not config["modules_to_save"]
            assert not config["use_dora"]
            assert config["r"] <= self.options["max_lora_rank"]
            assert len(self.cached) < self.options["max_loras"], "the former adapter was not removed"
            # All that it reads beside the weights: a rank or alpha of single modules it passes over.
            model = PeftModel.from_pretrained(self.loaded(), request.lora_path)
            self.cached[request.lora_int_id] = model.eval()
        return self.cached[request.lora_int_id]

    @torch.no_grad()
    def generate(
        self, prompts: Any, sampling_params: Any, use_tqdm: bool = True, lora_request: LoRARequest | None = None
    ) -> list[Any]:
        if self.asleep:
            raise RuntimeError(f"asked to sample while {sorted(self.asleep)} sleep")
        model = self.policy(lora_request)
        if any(parameter.isnan().any() for parameter in model.parameters()):
            raise RuntimeError("asked to sample before all weights were sent again")
        self.calls.append("generate")
        return [self.complete(model, prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    def complete(self, model: Any, prompt: list[int], params: Any) -> Any:
        ids, found = list(prompt), []
        assert params.logprobs == 0
        stops = {self.eos, *getattr(params, "stop_token_ids", ())}
        while len(ids) < len(prompt) + params.max_tokens and not (found and ids[-1] in stops):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float() / params.temperature
            logits = logits + self.noise * torch.randn(logits.shape)
            token = int(torch.multinomial(logits.softmax(-1), 1))
            ids.append(token)
            found.append({token: SimpleNamespace(logprob=logits.log_softmax(-1)[token].item(), rank=1)})
        output = SimpleNamespace(token_ids=ids[len(prompt) :], logprobs=found)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[output])


class SamplingParams(SimpleNamespace):
    """What TRL asks for, as attributes."""
