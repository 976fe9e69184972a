"""What the other methods assume of TRL's trainers. When one of these fails, read what upstream changed."""

import inspect

import pytest
from transformers import Trainer
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from llm_rlhf.methods.offline import PairDPOTrainer, ReplyKTOTrainer
from llm_rlhf.methods.online import ScoredGRPOTrainer, ScoredRLOOTrainer
from llm_rlhf.ppo.scores import RESERVED
from llm_rlhf.stages.best_of_n import _SFTTrainer

ONLINE = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_tokenize_prompts": ["self", "prompts"],
    "_get_train_sampler": ["self", "dataset"],
    "_prepare_inputs": ["self", "generation_batch"],
}
READING = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
OF_TRAINER = {  # also what llm_rlhf/stopping.py calls
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
}


@pytest.mark.parametrize(("own", "parent"), [(ScoredGRPOTrainer, GRPOTrainer), (ScoredRLOOTrainer, RLOOTrainer)])
def test_what_the_online_trainers_override_has_the_signature_it_had(own, parent) -> None:
    for name, parameters in ONLINE.items():
        assert list(inspect.signature(getattr(parent, name)).parameters) == parameters, name
        assert getattr(own, name) is not getattr(parent, name), name
    single_turn = list(inspect.signature(parent._generate_single_turn).parameters)  # passed on as they come
    assert single_turn[:4] == ["self", "prompt_ids", "images", "multimodal_fields"]
    assert own._generate_single_turn is not parent._generate_single_turn
    assert list(inspect.signature(parent._get_per_token_logps_and_entropies).parameters)[:7] == READING
    assert own._get_per_token_logps_and_entropies is not parent._get_per_token_logps_and_entropies
    reads = inspect.getsource(parent._generate_and_score_completions)  # a rollout; it asks for log-probabilities alone
    assert reads.count("self._get_per_token_logps_and_entropies(") == reads.count("_logps, _, _ = ") == 3
    assert "compute_entropy" not in reads
    assert "compute_entropy=True" in inspect.getsource(parent._compute_loss)
    assert "self.eos_token_ids = " in inspect.getsource(parent.__init__)
    source = inspect.getsource(parent._generate_and_score_completions) + inspect.getsource(parent._generate)
    for called in ("self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
                   "self._tokenize_prompts(prompts)", "self._generate_single_turn("):  # fmt: skip
        assert called in source, called
    assert "self._step % generate_every == 0 or self._buffered_inputs is None" in inspect.getsource(
        parent._prepare_inputs
    )
    assert "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]" in inspect.getsource(
        parent._prepare_inputs
    )
    step = inspect.getsource(parent.training_step)  # one that fails is not counted
    assert step.index("super().training_step(") < step.index("self._step += 1")
    for name in ("reward_func_names", "reward_weights"):  # set after the constructor to those of one score
        assert f"self.{name}" in inspect.getsource(parent._generate_and_score_completions), name


@pytest.mark.parametrize(("own", "parent"), [(PairDPOTrainer, DPOTrainer), (ReplyKTOTrainer, KTOTrainer)])
def test_the_offline_trainers_take_token_ids_from_prepare_dataset(own, parent) -> None:
    assert list(inspect.signature(parent._prepare_dataset).parameters) == [
        "self", "dataset", "processing_class", "args", "dataset_name",
    ]  # fmt: skip
    assert own._prepare_dataset is not parent._prepare_dataset
    assert "self._prepare_dataset(train_dataset, processing_class, args" in inspect.getsource(parent.__init__)


def test_the_collators_take_the_columns_that_our_rows_have() -> None:
    assert all(f'"{name}"' in inspect.getsource(DataCollatorForPreference.torch_call)
               for name in ("prompt_ids", "chosen_ids", "rejected_ids"))  # fmt: skip
    source = inspect.getsource(DataCollatorForUnpairedPreference.torch_call)
    assert all(f'"{name}"' in source for name in ("prompt_ids", "completion_ids", "KL_completion_ids", "label"))
    rotated = 'examples["KL_completion_ids"] = [examples["completion_ids"][-1]] + examples["completion_ids"][:-1]'
    assert rotated in inspect.getsource(KTOTrainer._prepare_dataset)
    # by which the stage knows the one loss without a KL, and that TRL keeps the rows' order for all others
    built = inspect.getsource(KTOTrainer.__init__)
    assert 'calculate_kl = args.loss_type not in ["apo_zero_unpaired"]' in built
    assert 'self.calculate_KL and args.train_sampling_strategy != "sequential"' in built
    weighed = "(self.desirable_weight * chosen_losses, self.undesirable_weight * rejected_losses)"
    assert weighed in inspect.getsource(KTOTrainer._compute_loss)


@pytest.mark.parametrize("parent", [DPOTrainer, KTOTrainer, GRPOTrainer, RLOOTrainer])
def test_the_reference_is_the_base_with_every_adapter_off(parent) -> None:
    """TRL's own choice where the model is PEFT's and none of its adapters is called "ref" (a reserved name here)."""
    off = 'adapter_name="ref" if "ref" in '
    assert off in inspect.getsource(parent)
    assert "ref" in RESERVED


@pytest.mark.parametrize(
    ("own", "parent"),
    [(ScoredGRPOTrainer, GRPOTrainer), (ScoredRLOOTrainer, RLOOTrainer), (PairDPOTrainer, DPOTrainer),
     (ReplyKTOTrainer, KTOTrainer), (_SFTTrainer, SFTTrainer)],
)  # fmt: skip
def test_all_save_and_resume_as_we_do(own, parent) -> None:
    for name, parameters in OF_TRAINER.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters, name
        assert getattr(own, name) is not getattr(parent, name), name
    loop = inspect.getsource(Trainer._inner_training_loop)
    assert own._run_epoch is not parent._run_epoch
    assert loop.index("self._run_epoch(") < loop.index("if self.control.should_training_stop:")
    assert "self.create_model_card(" in inspect.getsource(parent._save_checkpoint)
