"""PPOTrainer as other TRL trainers are used: text prompts, callbacks, checkpoints, and people who come from trl."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ppo_helpers import fixed_responses, make_trainer, responses_of, rollout
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback

from llm_rlhf import PPOConfig, PPOTrainer
from llm_rlhf.models.adapters import active_adapters

MANY_TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "and you?"},
]


def trainer_of(base_folder, folder, rows, reward_folder=None, callbacks=None, **options) -> PPOTrainer:
    config = {
        "per_device_train_batch_size": 4, "response_length": 5, "bf16": False, "report_to": "none",
        "disable_tqdm": True, "total_episodes": 8, "learning_rate": 1e-3, "save_strategy": "no", **options,
    }  # fmt: skip
    return PPOTrainer(
        model=str(base_folder),
        reward_adapter=reward_folder,
        reward_funcs=None if reward_folder else [brevity],
        args=PPOConfig(output_dir=str(folder), **config),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base_folder),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"),
        callbacks=callbacks,
        samples_file=folder / "samples.jsonl",
    )


def brevity(prompts, completions, completion_ids, wanted, trainer_state, **kwargs) -> list[float]:
    """Columns of the dataset and the trainer's state reach a reward function, as in TRL."""
    assert trainer_state.max_steps > 0
    return [-abs(len(ids) - n) for ids, n in zip(completion_ids, wanted, strict=True)]


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_prompts_are_text_or_messages_of_many_turns(base_folder, tmp_path, kind) -> None:
    prompt = "once upon a time" if kind == "text" else MANY_TURNS
    trainer = trainer_of(base_folder, tmp_path, [{"prompt": prompt, "wanted": i} for i in range(6)])
    seen = []
    generate = trainer._generate

    def note(prompts):
        answer = generate(prompts)
        seen.extend(answer[0])
        return answer

    trainer._generate = note
    trainer.train()
    tokenizer = trainer.processing_class
    expected = (
        "once upon a time"
        if kind == "text"
        else "<|system|>be brief<|user|>hello<|assistant|>hi<|eos|><|user|>and you?<|assistant|>"
    )
    assert {tokenizer.decode(ids) for ids in seen} == {expected}
    sample = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"] == prompt
    assert type(sample["response"]) is type(prompt)


def test_callbacks_and_log_history_are_the_trainers(base_folder, reward_folder, tmp_path) -> None:
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1

    count = Count()
    trainer = trainer_of(base_folder, tmp_path, [{"prompt": MANY_TURNS}] * 6, reward_folder, callbacks=[count])
    trainer.train()
    assert count.steps == trainer.state.global_step == 4
    names = {
        "objective/kl", "objective/kl_per_token", "objective/sqrt_kl", "objective/scores", "objective/rlhf_reward",
        "objective/entropy", "objective/kl_coef", "policy/approxkl", "policy/clipfrac",
        "policy/ratio", "loss/policy", "loss/value", "val/clipfrac", "val/explained_variance", "response_length",
        "eos_rate",
    }  # fmt: skip
    assert all(names <= line.keys() for line in trainer.state.log_history[:-1])


@pytest.mark.slow
def test_train_resumes_from_a_checkpoint_of_its_own(base_folder, reward_folder, tmp_path) -> None:
    ends = []
    for name in ("whole", "in two parts"):
        options = {"save_rollouts": 1, "total_episodes": 16, "lr_scheduler_type": "constant"}
        rows = [{"prompt": [{"role": "user", "content": f"say {i}"}]} for i in range(6)]  # passes end inside the run
        trainer = trainer_of(base_folder, tmp_path / name, rows, reward_folder, **options)
        if name == "in two parts":
            trainer.add_callback(StopAt(4))
            trainer.train()
            trainer = trainer_of(base_folder, tmp_path / name, rows, reward_folder, **options)
            trainer.train(resume_from_checkpoint=True)
        else:
            trainer.train()
        assert trainer.state.global_step == 8
        ends.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert all(torch.equal(p, ends[1][n]) for n, p in ends[0].items())


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_resuming_where_nothing_can_be_resumed_is_refused(base_folder, reward_folder, tmp_path) -> None:
    trainer = trainer_of(base_folder, tmp_path, [{"prompt": MANY_TURNS}] * 6, reward_folder)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        trainer.train(resume_from_checkpoint=tmp_path / "checkpoint-3")


@pytest.mark.slow
def test_a_checkpoint_of_another_rollout_size_is_refused(base_folder, reward_folder, tmp_path) -> None:
    rows = [{"prompt": MANY_TURNS}] * 12
    trainer_of(base_folder, tmp_path, rows, reward_folder, save_rollouts=1).train()
    other = trainer_of(base_folder, tmp_path, rows, reward_folder, save_rollouts=1, per_device_train_batch_size=2)
    with pytest.raises(ValueError, match=r"rollout = 4, now it is 2"):
        other.train(resume_from_checkpoint=True)


def test_save_model_writes_policy_and_value(base_folder, reward_folder, tmp_path) -> None:
    trainer = trainer_of(base_folder, tmp_path, [{"prompt": MANY_TURNS}] * 6, reward_folder)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "policy" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "saved" / "value" / "value_head.safetensors").is_file()


@pytest.mark.parametrize("name", ["ref_model", "value_model", "reward_model"])
def test_arguments_of_trls_ppo_say_where_they_went(base_folder, reward_folder, tmp_path, name) -> None:
    with pytest.raises(TypeError, match=rf"{name} is an argument of trl.PPOTrainer; here,"):
        PPOTrainer(model=str(base_folder), args=PPOConfig(output_dir=str(tmp_path), bf16=False), **{name: None})


def test_a_peft_config_can_be_used_again(base_folder, reward_folder, tmp_path) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    make_trainer(base_folder, tmp_path, reward_folder, lora=lora)
    assert lora.target_modules == "all-linear"


@pytest.mark.slow
def test_a_model_with_an_adapter_goes_on_from_it_and_refers_to_it(base_folder, reward_folder, tmp_path) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    ids = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
    trainer = make_trainer(base_folder, tmp_path, reward_folder, model=model, lora=False, perturb=False)
    fixed_responses(trainer, responses_of(trainer.processing_class.eos_token_id))
    (batch,) = rollout(trainer)
    assert batch.sequence_kl.abs().max() == 0
    trainer.train()
    assert rollout(trainer)[0].sequence_kl.abs().max() > 0
    trainer.model.eval()
    with torch.no_grad():
        with active_adapters(trainer.model, ["ref"]):
            assert torch.equal(trainer.model(input_ids=ids).logits, before)
        with active_adapters(trainer.model, ["default"]):
            assert not torch.equal(trainer.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("lora", [True, False])
def test_a_tokenizer_without_pad_token_or_template_gets_them(base_folder, tmp_path, capsys, lora) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != "<|pad|>"]
    raw["model"]["vocab"]["<|other|>"] = raw["model"]["vocab"].pop("<|pad|>")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), eos_token="<|eos|>")
    folder = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(base_folder).save_pretrained(folder)
    bare.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    trainer = PPOTrainer(
        model=str(folder),
        reward_funcs=[lambda completions, **kwargs: [float(len(c[0]["content"])) for c in completions]],
        args=PPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, response_length=5, bf16=False,
                       total_episodes=4, save_strategy="no", report_to="none"),
        train_dataset=Dataset.from_list([{"prompt": MANY_TURNS}] * 4),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear") if lora else None,
    )  # fmt: skip
    tokenizer = trainer.processing_class
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id < trainer.base_model().get_input_embeddings().num_embeddings
    assert "no chat template" in capsys.readouterr().out
    trainer.train()
