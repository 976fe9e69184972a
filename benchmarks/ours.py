"""One measured run of llm-rlhf's PPOTrainer. Columns: "shared", "adapter" (where the value function lives), "rollout"
(shared, and old log-probabilities and values kept from sampling rather than computed again), "compiled" (shared, layers
compiled), "liger" (shared, with Liger's kernels in the model's layers, which take liger-kernel and a GPU).
"""

from pathlib import Path
from typing import Any

import transformers.models.llama.modeling_llama  # noqa: F401 - so that `imports` weighs it
from datasets import Dataset
from job import Job, Phases, Work, common_arguments, load, main, policy_lora, prompt_ids, tokenizer
from transformers import AutoModelForCausalLM, TrainerCallback

from llm_rlhf import PPOConfig, PPOTrainer
from llm_rlhf.models.compiled_layers import compile_layers


class Stop(TrainerCallback):
    """Ends training after so many optimizer steps."""

    def __init__(self, work: Work, steps: int) -> None:
        self.work, self.steps = work, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = self.work.optimizer_steps >= self.steps


def build(job: Job, phases: Phases, work: Work) -> tuple[Any, Any]:
    options: dict[str, Any] = {"value": "adapter" if job.column == "adapter" else "shared"}
    if job.column == "rollout":
        options["old_logprobs"] = "rollout"
    if job.column == "liger":
        options["use_liger_kernel"] = True
    if job.iterations:
        options["total_episodes"] = job.prompts * job.of_run
    options |= job.settings
    trainer = PPOTrainer(
        model=load(job, AutoModelForCausalLM),
        reward_adapter=Path(job.folder) / "reward",
        args=PPOConfig(**common_arguments(job) | options),
        train_dataset=Dataset.from_list([{"prompt": " ".join(f"w{i}" for i in ids)} for ids in prompt_ids(job)]),
        processing_class=tokenizer(job),
        peft_config=policy_lora(job),
    )
    if job.column == "compiled":
        compile_layers(trainer.model)
    if job.iterations:
        trainer.add_callback(Stop(work, job.epochs * (job.iterations + 1)))
    generate, prepare_inputs = trainer._generate, trainer._prepare_inputs

    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        phases.begin("generate")
        answer = generate(*args, **kwargs)
        phases.begin("score")
        prompts, responses = answer[:2]
        assert all(len(ids) == job.prompt_tokens for ids in prompts), "a prompt is not as long as it should be"
        work.tokens_generated += sum(len(ids) for ids in responses)
        return answer

    def timed_prepare_inputs(batch: Any) -> Any:
        inputs = prepare_inputs(batch)
        if phases.current == "score":
            phases.begin("update")
        return inputs

    trainer._generate, trainer._prepare_inputs = timed_generate, timed_prepare_inputs
    return trainer, trainer.model


if __name__ == "__main__":
    main(build)
