"""Generation inside PPO: TRL's, by a loop of our own where that is faster, with what it computes on the way kept.

Private methods of RLOOTrainer that are overridden, guarded by tests/ppo/test_trl_contract.py: `_tokenize_prompts`,
`_generate_single_turn`.
"""

import contextlib
from typing import Any

from accelerate.utils import is_peft_model
from trl.data_utils import is_conversational
from trl.models import unwrap_model_for_generation

from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.decoding import left_out, plain_decoding
from llm_rlhf.models.encoding import encode_prompts
from llm_rlhf.models.memory import Portion
from llm_rlhf.models.sampler import WORTH_IT, PolicySampler
from llm_rlhf.ppo.config import PPOConfig, sampled_otherwise
from llm_rlhf.ppo.sampling import Sampled, continuous_batches, own_sampler
from llm_rlhf.ppo.saving import SavedRoles
from llm_rlhf.ppo.vllm import check_server, keep_engine_logprobs, send_policy_weights, stop_replies_at
from llm_rlhf.ppo.vllm_adapter import send_policy_adapter, sends_adapter
from llm_rlhf.stopping import stop_if_asked
from llm_rlhf.training import is_sharded


def compiles(args: PPOConfig, device: str) -> bool:
    """Whether the decoding step is to be compiled: on CUDA that takes a minute, and then saves some 30 ms a step."""
    steps = args.max_steps / args.steps_per_rollout * args.response_length
    pays = device == "cuda" and args.old_logprobs == "rescored" and steps >= WORTH_IT
    return args.decoding == "compiled" or (args.decoding == "auto" and not sampled_otherwise(args) and pays)


class GeneratedResponses(SavedRoles):
    """The part of PPOTrainer that samples."""

    _sampled: Sampled | None  # what the newest rollout's sampling computed; None where nothing was kept
    _sampler: PolicySampler | None  # None: TRL samples, by transformers' own loop or by an engine

    def _ready_to_sample(self) -> None:
        """Once the roles are there: settle with the engine, and on what may be taken in place of its own drawing."""
        self._sampled = None
        if self.args.cache_implementation and self.accelerator.device.type == "cuda" and not self.use_vllm:
            self.generation_config.disable_compile = False  # a static cache is asked for to be compiled; TRL says never
        if self.use_vllm:
            if self.args.vllm_mode == "server" and self.accelerator.is_main_process:
                check_server(self.vllm_generation.vllm_client, self.args)
            stop_replies_at(self.vllm_generation, list(self.eos_token_ids))
            keep_engine_logprobs(self.vllm_generation, self._keep_engine_logprobs)
            send = send_policy_adapter if sends_adapter(self.args) else send_policy_weights
            send(self.vllm_generation, self.model)
        if unused := left_out(self.base_model().generation_config):
            settings = ", ".join(f"{name}={value!r}" for name, value in unused.items())
            self.accelerator.print(
                f"  note: the model's generation config has {settings}; PPO samples without, as it learns from what "
                "the policy itself would say. The saved model keeps it."
            )
        self._sampler = self._own_sampler()
        sharded = is_sharded(self.accelerator)
        less = "ppo.response_length or model.context_length"
        if sharded:
            less = f"ppo.per_device_train_batch_size (and raise ppo.gradient_accumulation_steps by as much), {less}"
        self._sampling = Portion(
            "sampling",
            f"{less}, or set ppo.merge_for_sampling: false or ppo.decoding: plain",
            halves=not sharded,
        )

    def _own_sampler(self) -> PolicySampler | None:
        args, accelerator = self.args, self.accelerator
        compiled = compiles(args, accelerator.device.type) and not is_sharded(accelerator)
        sampler = own_sampler(
            args,
            accelerator,
            self.base_model(),
            POLICY if is_peft_model(self.model) else None,
            merge=args.merge_for_sampling,
            may_round=args.old_logprobs == "rescored",
            compiled_rows=args.generation_batch_size // accelerator.num_processes if compiled else None,
            must_compile=args.decoding == "compiled",
        )
        if sampler is not None and (sampler.compiled is not None or sampler.rounded):
            how = ["by a compiled step (the first rollout takes a minute more)"] * (sampler.compiled is not None)
            how += ["from merged weights, with importance weights for what that rounds"] * sampler.rounded
            accelerator.print(f"  note: replies are sampled {', '.join(how)}.")
        return sampler

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
        sampler = self._sampler
        if sampler is None:
            return self._generate_part(prompt_ids, images, multimodal_fields)
        longest, replies = max(len(ids) for ids in prompt_ids), self.args.response_length
        most = None if sampler.compiled is None else sampler.compiled.fitted(longest, replies)

        def sample(part: Any) -> tuple[list[list[int]], Sampled | None]:
            self._sampled = None
            return self._generate_part(part, None, {}), self._sampled

        parts = self._sampling.run(sample, prompt_ids, longest + replies, most)
        stop_if_asked(self.accelerator)  # before what was broken off is taken for replies
        kept = [sampled for _, sampled in parts if sampled is not None]
        self._sampled = Sampled.together(kept) if kept else None
        return [ids for part, _ in parts for ids in part]

    def _generate_part(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        """Responses to some of a rollout's prompts."""
        response_ids: list[list[int]]
        with contextlib.ExitStack() as stack:
            model, loop = self.base_model(), None
            if self._sampler is None:
                stack.enter_context(plain_decoding(model))
                # Under FSDP every process decodes until all have finished, as each forward gathers weights of all.
                # transformers knows it by this attribute, which accelerate does not set.
                model._is_fsdp_managed_module = self.accelerator.is_fsdp2
            else:
                head = model.value_head if self.args.old_logprobs == "rollout" else None
                loop = stack.enter_context(self._sampler(seed=self.state.global_step, value_head=head))
            response_ids = super()._generate_single_turn(prompt_ids, images, multimodal_fields)
        if loop is not None and self._sampler and (loop.value_head is not None or self._sampler.rounded):
            self._sampled = Sampled.by(loop, [len(ids) for ids in response_ids])
        return response_ids

    def _keep_engine_logprobs(self, rows: list[list[float]]) -> None:
        self._sampled = Sampled(rows)
