"""What PPOTrainer assumes of TRL, PEFT and transformers. When one of these fails, read what upstream changed."""

import inspect
import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import torch
import trl
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM
from trl import RLOOConfig, RLOOTrainer, import_utils
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.ppo.trainer import PPOTrainer

OVERRIDDEN = {
    "_prepare_inputs": ["self", "generation_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_single_turn": ["self", "prompt_ids", "images", "multimodal_fields"],
    "_get_train_sampler": ["self", "dataset"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
}
CALLED = {
    "_generate": ["self", "prompts"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
}


def test_trl_is_the_minor_version_this_was_written_for() -> None:
    assert trl.__version__.startswith("1.16.")


def test_the_extra_vllm_is_the_range_that_trl_supports() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = {Requirement(line) for line in project["optional-dependencies"]["vllm"]}
    of_trl = (Requirement(line) for line in requires("trl") or [])
    assert {f"{r.name}{r.specifier}" for r in ours} == {
        f"{r.name}{r.specifier}" for r in of_trl if r.marker and r.marker.evaluate({"extra": "vllm"})
    }
    source = inspect.getsource(import_utils.is_vllm_available)  # which warns of any other version
    low, high = re.findall(r'Version\("([\d.]+)"\)', source)
    (vllm,) = (r for r in ours if r.name == "vllm")
    assert vllm.specifier == SpecifierSet(f">={low},<={high}")


def test_overridden_and_called_methods_have_the_signatures_they_had() -> None:
    for name, parameters in {**OVERRIDDEN, **CALLED}.items():
        assert list(inspect.signature(getattr(RLOOTrainer, name)).parameters) == parameters, name


def test_everything_overridden_is_overridden_here() -> None:
    for name in OVERRIDDEN:
        assert getattr(PPOTrainer, name) is not getattr(RLOOTrainer, name), name


def test_private_names_elsewhere_exist() -> None:
    from trl.generation.vllm_generation import VLLMGeneration

    source = inspect.getsource(VLLMGeneration)
    assert source.count("self._iter_named_params()") >= 3  # every path that sends weights goes through it
    assert "logprobs" in inspect.signature(VLLMGeneration.__init__).parameters
    assert '"logprobs": self.logprobs' in source
    assert "generation_kwargs.update(self.generation_kwargs)" in source  # which gets the tokens that end a reply
    assert '"generation_kwargs": self.generation_kwargs' in source
    assert source.count("self.llm = LLM(") == 1  # which ppo/vllm_adapter.py gives more arguments
    assert "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)" in source
    assert source.count("self.llm.generate(") == 1
    assert 'if self.mode == "colocate" and self.enable_sleep_mode and self._llm_weights_sleeping:' in source
    of_trainer = inspect.getsource(RLOOTrainer._generate_single_turn)
    assert "self.vllm_generation.sync_weights()" in of_trainer  # in each new step, before it generates
    assert "if self.state.global_step != self._last_loaded_step:" in of_trainer
    sampler = RepeatSampler(range(5), 1, batch_size=2, seed=0)
    assert hasattr(sampler, "generator")


def test_the_parent_calls_what_is_overridden() -> None:
    assert "self._compute_loss(model, inputs)" in inspect.getsource(RLOOTrainer.compute_loss)
    assert "self._prepare_inputs" in inspect.getsource(RLOOTrainer.training_step) + inspect.getsource(
        super(RLOOTrainer, RLOOTrainer).training_step
    )
    log = inspect.getsource(RLOOTrainer.log)
    assert "self._metrics[mode]" in log
    assert "sum(valid) / len(valid)" in log  # our per-token means rely on this plain average


def test_the_parents_hand_on_what_is_prepared_without_a_look_inside() -> None:
    """It is a list of records here, a dictionary of tensors there."""
    plain = super(RLOOTrainer, RLOOTrainer)
    _, prepare, after = inspect.getsource(plain.training_step).partition("inputs = self._prepare_inputs(inputs)\n")
    assert prepare
    lines = [line.strip() for line in after.splitlines() if "inputs" in line and "sagemaker" not in line]
    lines.remove("loss_mb = smp_forward_backward(model, inputs, self.args.gradient_accumulation_steps)")  # SageMaker's
    assert lines == ["loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)", "del inputs"]
    assert "return self._compute_loss(model, inputs)\n" in inspect.getsource(RLOOTrainer.compute_loss)


def test_the_parent_counts_micro_steps_in_step() -> None:
    assert "self._step += 1" in inspect.getsource(RLOOTrainer.training_step)


def test_config_fields_of_the_pairs_exist() -> None:
    fields = RLOOConfig.__dataclass_fields__
    names = ("beta", "num_iterations", "steps_per_generation", "max_completion_length", "epsilon", "max_steps",
             "generation_batch_size", "num_generations", "num_generations_eval", "reward_clip_range")  # fmt: skip
    assert all(name in fields for name in names)


def test_fused_head_scores_shifted_labels_of_a_sliced_trunk(base_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    ids = torch.randint(10, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits.log_softmax(-1)[:, 3:6].gather(2, ids[:, 4:, None]).squeeze(2)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))

        def cut(_module, _args, output):
            output.last_hidden_state = output.last_hidden_state[:, 3:6]
            return output

        hook = model.base_model.register_forward_hook(cut)
        found = model(input_ids=ids, shift_labels=ids[:, 4:], fused_lm_head=True)
        hook.remove()
    torch.testing.assert_close(found.log_probs, expected, rtol=0, atol=1e-6)  # fp32, another order of sums
    assert found.entropy.shape == (2, 3)


def test_peft_layers_read_the_private_active_adapter(base_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    model.add_adapter("other", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if "lora_B.other" in name:
            parameter.data.normal_()
    trainable = {n: p.requires_grad for n, p in model.named_parameters()}
    ids = torch.randint(10, 200, (1, 5), generator=torch.Generator().manual_seed(0))
    plain = model(input_ids=ids).logits  # a fresh default adapter adds nothing
    with active_adapters(model, ["other"]):
        inside = model(input_ids=ids).logits
        assert all(m.active_adapters == ["other"] for m in model.modules() if isinstance(m, BaseTunerLayer))
    assert not torch.allclose(inside, plain)
    assert torch.equal(model(input_ids=ids).logits, plain)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == trainable
    model.set_adapter("other")
    assert torch.equal(model(input_ids=ids).logits, inside)  # what PEFT's own switch gives
