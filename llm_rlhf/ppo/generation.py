"""Generation inside PPO: TRL's, with what it computes on the way kept, and drawn or merged where that is faster.

Private methods of RLOOTrainer that are overridden, guarded by tests/ppo/test_trl_contract.py: `_tokenize_prompts`,
`_generate_single_turn`.
"""

import contextlib
from typing import Any

from accelerate.utils import DistributedType
from trl.data_utils import is_conversational
from trl.models import unwrap_model_for_generation

from llm_rlhf.models.decoding import left_out, plain_decoding
from llm_rlhf.models.encoding import encode_prompts
from llm_rlhf.models.random_draws import drawing
from llm_rlhf.ppo.sampling import Sampled, continuous_batches, merged_policy, watch_generate
from llm_rlhf.ppo.saving import SavedRoles
from llm_rlhf.ppo.vllm import check_server, keep_engine_logprobs, send_policy_weights


class GeneratedResponses(SavedRoles):
    """The part of PPOTrainer that samples."""

    _sampled: Sampled | None  # what the newest rollout's sampling computed; None where nothing was kept

    def _ready_to_sample(self) -> None:
        """Once the roles are there: settle with the engine, and on what may be taken in place of its own drawing."""
        self._sampled = None
        if self.args.cache_implementation and self.accelerator.device.type == "cuda" and not self.use_vllm:
            self.generation_config.disable_compile = False  # a static cache is asked for to be compiled; TRL says never
        if self.use_vllm:
            if self.args.vllm_mode == "server" and self.accelerator.is_main_process:
                check_server(self.vllm_generation.vllm_client, self.args)
            keep_engine_logprobs(self.vllm_generation, self._keep_engine_logprobs)
            send_policy_weights(self.vllm_generation, self.model)
        if unused := left_out(self.base_model().generation_config):
            settings = ", ".join(f"{name}={value!r}" for name, value in unused.items())
            self.accelerator.print(
                f"  note: the model's generation config has {settings}; PPO samples without, as it learns from what "
                "the policy itself would say. The saved model keeps it."
            )
        # On a CPU torch.multinomial takes longer than the model; Draw knows the plain distribution only.
        on_cpu = self.accelerator.device.type == "cpu" and not self.use_vllm
        self._draws = on_cpu and not self.args.samples_with_bias and not self.args.generation_kwargs
        whole = self.accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self._merges = on_cpu and whole and self.accelerator.mixed_precision == "no"

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """The parent's; conversations as every stage encodes them (models/encoding.py)."""
        prompt_ids, images, multimodal_fields = super()._tokenize_prompts(prompts)
        if images is None and is_conversational({"prompt": prompts[0]}):
            prompt_ids = encode_prompts(self._tokenizer, prompts)
        return prompt_ids, images, multimodal_fields

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        """The parent's, keeping the log-probabilities that sampling computed."""
        response_ids: list[list[int]]
        if self.use_transformers_continuous_batching:
            was_training = self.model.training
            with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
                response_ids, self._sampled = continuous_batches(
                    model, prompt_ids, self.generation_config, self.continuous_batching_config
                )
            self.model.train(was_training)  # the engine turns it to evaluation
            return response_ids
        with contextlib.ExitStack() as stack:
            stack.enter_context(plain_decoding(self.base_model()))
            # Under FSDP every process decodes until all have finished, as each forward gathers weights of all.
            # transformers knows it by this attribute, which accelerate does not set.
            self.base_model()._is_fsdp_managed_module = self.accelerator.is_fsdp2
            watch = None
            if self.args.old_logprobs == "rollout":
                watch = stack.enter_context(watch_generate(self.base_model(), self.args.temperature))
            if self._draws:
                stack.enter_context(drawing(self.base_model(), self.args.temperature))
            if self._merges:
                stack.enter_context(merged_policy(self.base_model()))
            response_ids = super()._generate_single_turn(prompt_ids, images, multimodal_fields)
        if watch is not None:
            self._sampled = watch.rows(response_ids)
        return response_ids

    def _keep_engine_logprobs(self, rows: list[list[float]]) -> None:
        self._sampled = Sampled(rows)
