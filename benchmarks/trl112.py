"""One measured run of trl 1.12.0's PPOTrainer. Columns: "trl-full" (its value model fully fine-tuned, as it is by
default), "trl-lora" (LoRA on the value model too), "trl-onednn" ("trl-full", its linear layers multiplying as ours do).
"""

from typing import Any

import transformers.models.llama.modeling_llama  # noqa: F401 - so that `imports` weighs it
import trl.experimental.ppo.ppo_trainer as upstream
from datasets import Dataset
from job import EOS, PAD, Job, Phases, Work, common_arguments, load, main, policy_lora, prompt_ids, tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer

GENERATE = upstream.batch_generation


def value_model(job: Job) -> Any:
    if job.column != "trl-lora":
        return load(job, AutoModelForSequenceClassification, quantized=False, num_labels=1)
    lora = LoraConfig(
        task_type="SEQ_CLS", r=job.lora_r, lora_alpha=2 * job.lora_r, target_modules="all-linear",
        modules_to_save=["score"],
    )  # fmt: skip
    # The trainer reaches into the model by name, past PEFT's wrapper; the adapted layers stay in place.
    return get_peft_model(load(job, AutoModelForSequenceClassification, num_labels=1), lora).get_base_model()


def build(job: Job, phases: Phases, work: Work) -> tuple[Any, Any]:
    options = common_arguments(job) | {
        "local_rollout_forward_batch_size": min(64, job.prompts),  # 64 is its default
        "num_sample_generations": 0,
    }
    if job.quantization:
        options["bf16"] = False  # with it, norms of a 4-bit model become float32 and its bfloat16 head cannot follow
    trainer = PPOTrainer(
        args=PPOConfig(**options),
        processing_class=tokenizer(job),
        model=load(job, AutoModelForCausalLM),
        ref_model=None,
        reward_model=load(job, AutoModelForSequenceClassification, num_labels=1).requires_grad_(False),
        value_model=value_model(job),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompt_ids(job)]),
        peft_config=policy_lora(job),
    )
    if job.column == "trl-onednn":
        from llm_rlhf.models.products import multiply_faster  # the others weigh nothing of this package

        for model in (trainer.model, trainer.reward_model):
            multiply_faster(model)
    accumulate = trainer.accelerator.accumulate

    def timed_generate(model: Any, queries: Any, *args: Any) -> Any:
        phases.begin("generate")
        answer = GENERATE(model, queries, *args)
        phases.begin("score")
        assert queries.size(1) == job.prompt_tokens, "a prompt is not as long as it should be"
        responses = answer[0][:, queries.size(1) :]
        work.tokens_generated += int(((responses != EOS) & (responses != PAD)).sum())
        return answer

    def timed_accumulate(*models: Any) -> Any:
        if phases.current == "score":
            phases.begin("update")
        return accumulate(*models)

    upstream.batch_generation, trainer.accelerator.accumulate = timed_generate, timed_accumulate
    return trainer, trainer.model.policy


if __name__ == "__main__":
    main(build)
