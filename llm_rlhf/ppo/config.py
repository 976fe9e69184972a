"""PPOConfig: the names people know from TRL's PPOConfig, laid over RLOOConfig.

The parent names the same things differently. Each pair below may be set by either name, never by both:

| here               | parent                       |
|--------------------|------------------------------|
| kl_coef            | beta                         |
| num_ppo_epochs     | num_iterations               |
| num_mini_batches   | steps_per_generation (which is num_mini_batches x gradient_accumulation_steps) |
| response_length    | max_completion_length        |
| cliprange          | epsilon                      |
| total_episodes     | max_steps (optimizer steps)  |
"""

import math
import os
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import GenerationConfig
from trl import RLOOConfig

from llm_rlhf.launch import on_one_gpu

NOT_SET: Any = None
LAYERS = "it compiles a model whole; compile_layers (model.compile in a recipe) does it layer by layer"
BEST = "keep 'best' leaves the best snapshot, by the held-out reward model"


def samples_with_bias(args: Any) -> bool:
    """`PPOConfig.samples_with_bias` of any of TRL's configurations that sample."""
    return bool(args.top_p < 1 or args.top_k > 0 or args.min_p or args.repetition_penalty != 1)


def sampled_otherwise(args: Any) -> list[str]:
    """The keys by which one of TRL's configurations asks for another way of sampling than our own loop."""
    asked = {
        "use_vllm": args.use_vllm,
        "use_transformers_continuous_batching": args.use_transformers_continuous_batching,
        "cache_implementation": args.cache_implementation,
        "generation_kwargs": args.generation_kwargs,
        "top_p, top_k, min_p or repetition_penalty": samples_with_bias(args),
    }
    return [name for name, there in asked.items() if there]


@dataclass
class PPOConfig(RLOOConfig):
    """Configuration of PPOTrainer. Every field of transformers.TrainingArguments and trl.RLOOConfig is accepted too.

    One rollout is `per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches` responses on every
    process; it is used for `num_ppo_epochs` passes of `num_mini_batches` optimizer steps each.
    """

    # The names of the pairs. Not set by either name, they get the default that the help text gives.
    kl_coef: float = field(default=NOT_SET, metadata={"help": "Weight of the KL penalty. Default 0.05."})
    num_ppo_epochs: int = field(default=NOT_SET, metadata={"help": "Passes over each rollout. Default 2."})
    num_mini_batches: int = field(default=NOT_SET, metadata={"help": "Optimizer steps per pass. Default 1."})
    response_length: int = field(default=NOT_SET, metadata={"help": "Longest response in tokens. Default 256."})
    cliprange: float = field(default=NOT_SET, metadata={"help": "Clip of the policy's ratio. Default 0.2."})
    total_episodes: int | None = field(default=None, metadata={"help": "Responses sampled in all, rounded up."})
    beta: float = field(default=NOT_SET, metadata={"help": "The parent's name for kl_coef."})
    num_iterations: int = field(default=NOT_SET, metadata={"help": "The parent's name for num_ppo_epochs."})
    max_completion_length: int = field(default=NOT_SET, metadata={"help": "The parent's name: response_length."})
    epsilon: float = field(default=NOT_SET, metadata={"help": "The parent's name for cliprange."})

    max_steps: int = field(default=-1, metadata={"help": "Optimizer steps in all; the parent's total_episodes."})
    steps_per_generation: int | None = field(default=None, metadata={"help": "Micro-batches of a rollout."})
    num_generations_eval: int | None = field(default=None, metadata={"help": "Responses per evaluation prompt."})

    # PPO's own
    value: Literal["shared", "adapter"] = field(
        default="shared",
        metadata={
            "help": "Where the value function lives: 'shared' is a head on the policy's own hidden states, started "
            "at zero; 'adapter' is an adapter and head of its own, started from the reward model's."
        },
    )
    kl_estimator: Literal["k1", "k3"] = field(  # k3 is named so that it is refused with its reason
        default="k1",
        metadata={
            "help": "Per-token estimator of the KL that is paid as a penalty: the log-ratio. trl's k3 is logged "
            "(objective/kl_k3) but cannot be paid: as a reward it pulls no policy back to the reference (docs/ppo.md)."
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip of the value around its rollout value."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale rewards to variance 1 over the rollout."})
    missing_eos_penalty: float = field(
        default=1.0, metadata={"help": "Subtracted from the score of a response cut before it stopped by itself."}
    )

    # The KL's coefficient and its limits
    adaptive_kl_target: float | None = field(
        default=None,
        metadata={
            "help": "Mean KL to the reference, in nats per response, that kl_coef is steered to (Ziegler et al. 2019). "
            "None: kl_coef stays fixed."
        },
    )
    adaptive_kl_horizon: int = field(
        default=NOT_SET,
        metadata={
            "help": "Responses over which kl_coef adapts. Default: a twentieth of the run's, at most 10,000, so that a "
            "short run can move it too (by a factor of 50 at most), and a rollout's at least."
        },
    )
    kl_limit: float | None = field(
        default=None,
        metadata={
            "help": "Training stops before it learns from a rollout whose mean KL, in nats per response, is over."
        },
    )
    ratio_limit: float | None = field(
        default=10.0,
        metadata={"help": "An optimizer step whose mean ratio of policy to old policy is over is skipped."},
    )
    update_kl_limit: float | None = field(
        default=None,
        metadata={
            "help": "Once a step's mean approximate KL to the old policy, in nats per token, is over, this step and "
            "the rollout's remaining ones are skipped."
        },
    )

    # Alarms: what is wrong with a rollout, against the first, before anything is learned from it
    value_alarm: float | None = field(
        default=10.0,
        metadata={
            "help": "Alarm when a rollout's values (their root mean square) are so many times the largest rewards of "
            "any rollout yet, and the first rollout's values. None: no alarm."
        },
    )
    entropy_alarm: float | None = field(
        default=0.05,
        metadata={
            "help": "Alarm when a rollout's mean entropy per token is below this share of the first's. None: no alarm."
        },
    )
    alarm_action: Literal["warn", "stop"] = field(
        default="warn",
        metadata={
            "help": "What an alarm of value_alarm or entropy_alarm does: 'warn' tells it, now and in the report; "
            "'stop' also ends training, before it learns from that rollout."
        },
    )

    # Scores
    score_combination: Literal["weighted", "minimum", "mean_minus_spread"] = field(
        default="weighted",
        metadata={
            "help": "How several reward models become one score: sum weighted by reward_weights, the least, or the "
            "mean less score_spread_coef times the standard deviation. Scores of Python functions are added to it."
        },
    )
    score_spread_coef: float = field(default=1.0, metadata={"help": "Weight of the models' disagreement."})
    score_normalization: Literal["none", "scale", "whiten"] = field(
        default="none",
        metadata={
            "help": "'scale' divides scores by their running standard deviation, 'whiten' also subtracts their running "
            "mean. reward_clip_range applies after it, missing_eos_penalty after that."
        },
    )
    score_normalization_by: Literal["all", "objective"] = field(
        default="all",
        metadata={
            "help": "Whose mean and deviation score_normalization takes: of all scores, or of those to prompts of the "
            "same objective (column `objective` of the prompts), so that neither side outweighs the other."
        },
    )

    # The value function and mixed-in supervised loss
    value_warmup_rollouts: int = field(
        default=0, metadata={"help": "Rollouts at the start from which only the value function learns."}
    )
    ptx_coef: float = field(
        default=0.0,
        metadata={"help": "Weight of the supervised loss on ptx_dataset added to PPO's (Ouyang et al. 2022, gamma)."},
    )

    # How the rollout goes through the model
    micro_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of one forward, padding and demonstrations counted: rows of like length are put "
            "together up to it. Then per_device_train_batch_size is a process's share of a mini-batch, and "
            "gradient_accumulation_steps is 1. None: micro-batches of per_device_train_batch_size rows; on CUDA, where "
            "gradient_accumulation_steps is 1, as many tokens as half of the free memory holds, 16,384 at most."
        },
    )
    old_logprobs: Literal["rescored", "rollout"] = field(
        default="rescored",
        metadata={
            "help": "'rescored': old log-probabilities from a forward in the update's own shapes, so that the first "
            "ratio is exactly 1. 'rollout': those that sampling computed, and the values of its hidden states; saves a "
            "forward, at rounding's price (1e-6 in float32, up to 0.1 in bfloat16). Only with our own loop, not "
            "compiled, and value: shared."
        },
    )
    importance_cap: float = field(
        default=2.0,
        metadata={
            "help": "Cap of the importance weights old policy / sampling engine, per token, where an engine of its own "
            "(vLLM, continuous batching), or the policy merged in bfloat16, sampled the responses."
        },
    )
    vllm_weights: Literal["merged", "adapter"] = field(
        default="merged",
        metadata={
            "help": "What vLLM is sent of the policy: 'merged' all weights, the adapter added to them, which is right "
            "for every policy and whatever vLLM started from; 'adapter' the LoRA alone, for the base that vLLM has "
            "loaded itself: little to send, and the only way on an nf4 base. Only with vllm_mode: colocate."
        },
    )
    decoding: Literal["auto", "plain", "compiled"] = field(
        default="auto",
        metadata={
            "help": "How transformers' generate decodes: 'plain' with a cache that grows, finished rows leaving the "
            "batch; 'compiled' with one of fixed size and the step compiled. 'auto': compiled on CUDA in runs of 2,000 "
            "decoding steps (rollouts times response_length) or more, else plain."
        },
    )
    merge_for_sampling: bool | None = field(
        default=None,
        metadata={
            "help": "Sample from a copy of the adapted layers with the policy's LoRA merged into it; in bfloat16 with "
            "importance weights. Default: where the copy takes at most a third of the free memory."
        },
    )

    # Evaluation and checkpoints happen between rollouts
    eval_rollouts: int | None = field(default=None, metadata={"help": "Evaluate every so many rollouts."})
    save_rollouts: int | None = field(default=None, metadata={"help": "Write a checkpoint every so many rollouts."})
    keep: Literal["last", "best"] = field(
        default="last",
        metadata={
            "help": "The policy that is left at the end: the last one, or the snapshot with the best score by the "
            "held-out reward model (without one: by the training reward) on eval_dataset, the start among them, but "
            "none in which a side looks worse to side_guard. Chosen so, it looks better to that model than it is."
        },
    )
    side_guard: Literal["warn", "stop", "off"] = field(
        default="warn",
        metadata={
            "help": "What happens when a side (an objective of eval_dataset) is shown to be worse than at the start: "
            "its held-out score fell, harmless prompts are refused less or helpful ones more. 'stop' ends training "
            "and leaves the newest snapshot in which no side even looks worse (with keep: best, the best such one)."
        },
    )
    side_guard_level: float = field(
        default=0.05,
        metadata={
            "help": "Probability, at most, that a run in which no side gets worse is warned of or stopped; it is "
            "shared out over all evaluations and all that is watched."
        },
    )
    eval_on_start: bool = field(
        default=NOT_SET,
        metadata={
            "help": "Evaluate the starting policy before the first update. Default: where training is evaluated at all."
        },
    )
    preview_best_of: int = field(
        default=0,
        metadata={
            "help": "Before training, so many replies to each prompt of eval_dataset show what the best of them by the "
            "training reward would do to each side. 0: no preview."
        },
    )
    keep_kl_limit: float | None = field(
        default=None, metadata={"help": "Snapshots over this KL, in nats per response, are not chosen as the best."}
    )

    # Parent's fields with another default here
    num_generations: int = field(default=1, metadata={"help": "Responses sampled per prompt of a rollout."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "AdamW's epsilon (Huang et al. 2024, detail 2)."})
    disable_dropout: bool = field(default=True, metadata={"help": "Must stay True: dropout biases the ratios."})
    logging_steps: float = field(
        default=NOT_SET, metadata={"help": "Optimizer steps between two log lines. Default: once a rollout."}
    )

    def __post_init__(self) -> None:
        self._refuse_unsupported()
        self.kl_coef = self.beta = self._pair("kl_coef", "beta", 0.05)
        self.num_ppo_epochs = self.num_iterations = self._pair("num_ppo_epochs", "num_iterations", 2)
        self.response_length = self.max_completion_length = self._pair("response_length", "max_completion_length", 256)
        self.cliprange = self.epsilon = self._pair("cliprange", "epsilon", 0.2)
        if self.total_episodes is not None and self.max_steps > 0:
            raise ValueError("total_episodes and max_steps both say how long to train; set one of them.")
        for parent in ("steps_per_generation", "generation_batch_size"):
            if self.num_mini_batches is not None and getattr(self, parent) is not None:
                raise ValueError(f"num_mini_batches and {parent} both set the size of a rollout; set one of them.")
        if self.steps_per_generation is None and self.generation_batch_size is None:
            self.steps_per_generation = (self.num_mini_batches or 1) * self.gradient_accumulation_steps
        self._parent_post_init()
        on_one_gpu(self)
        self.num_mini_batches, rest = divmod(self.steps_per_generation, self.gradient_accumulation_steps)
        if rest or self.num_mini_batches == 0:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}); set num_mini_batches instead."
            )
        if self.total_episodes is not None:
            self.max_steps = -(-self.total_episodes // self.generation_batch_size) * self.steps_per_rollout
        if self.logging_steps is None:
            self.logging_steps = self.steps_per_rollout
        self._between_rollouts("eval")
        self._between_rollouts("save")
        if self.eval_on_start is None:
            self.eval_on_start = str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no"
        if self.adaptive_kl_horizon is None:
            self.adaptive_kl_horizon = self._default_horizon()
        self._check_choices()
        self._check_ranges()

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that one rollout is used for."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def samples_with_bias(self) -> bool:
        """Whether what is sampled is not the distribution whose log-probabilities PPO compares."""
        return samples_with_bias(self)

    def _parent_post_init(self) -> None:
        """RLOO compares responses of one prompt and so refuses one response per prompt; PPO has a value function.

        The parent asks that the rollout divide into groups of at least two; one group of everything always does.
        """
        num_generations, num_generations_eval = self.num_generations, self.num_generations_eval
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        rollout = self.generation_batch_size or (
            self.per_device_train_batch_size * world_size * int(self.steps_per_generation or 1)
        )
        if rollout < 2:
            raise ValueError("A rollout of one response cannot be whitened; raise per_device_train_batch_size.")
        if num_generations is None or num_generations < 1 or rollout % num_generations:
            raise ValueError(f"num_generations ({num_generations}) must divide the rollout's {rollout} responses.")
        logging_steps, self.logging_steps = self.logging_steps, self.logging_steps or 10
        self.num_generations, self.num_generations_eval = rollout, num_generations_eval or 1
        super().__post_init__()
        self.num_generations, self.logging_steps = num_generations, logging_steps

    def _between_rollouts(self, what: str) -> None:
        """eval_steps and save_steps, rounded up to rollout boundaries: a run resumed inside a rollout would diverge."""
        rollouts, steps = getattr(self, f"{what}_rollouts"), getattr(self, f"{what}_steps")
        if rollouts is not None:
            if rollouts < 1:
                raise ValueError(f"{what}_rollouts is {rollouts}; it must be at least 1.")
            setattr(self, f"{what}_strategy", type(getattr(self, f"{what}_strategy"))("steps"))
        elif steps is not None:
            steps = steps if steps >= 1 else steps * max(self.max_steps, 1)  # under 1 it is a share of the run
            rollouts = math.ceil(steps / self.steps_per_rollout)
        if rollouts is not None:
            setattr(self, f"{what}_steps", rollouts * self.steps_per_rollout)

    def _default_horizon(self) -> int:
        """Ziegler et al. used 10,000 responses for runs of millions; with it kl_coef of a run of 4,000 moves by 8 %."""
        rollout = int(self.generation_batch_size)
        if self.max_steps <= 0:
            return max(10_000, rollout)
        responses = self.max_steps // self.steps_per_rollout * rollout
        return max(min(10_000, responses // 20), rollout)

    def _pair(self, name: str, parent: str, default: Any) -> Any:
        ours, theirs = getattr(self, name), getattr(self, parent)
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(f"{name} ({ours}) and {parent} ({theirs}) are two names of one setting; set {name} alone.")
        return next((v for v in (ours, theirs) if v is not None), default)

    def _refuse_unsupported(self) -> None:
        reasons = {
            "mask_truncated_completions": "responses cut before they stop are scored with missing_eos_penalty",
            "normalize_advantages": "PPO always whitens advantages over the rollout",
            "sync_ref_model": "the reference is the base with its adapters off",
            "epsilon_high": "PPO's clip is symmetric; set cliprange",
            "router_aux_loss_coef": "PPO adds no loss for the balance of experts",
            "load_best_model_at_end": BEST,
            "metric_for_best_model": BEST,
            "save_only_model": "checkpoints are there to resume from, which takes the optimizer's state",
            "ignore_data_skip": "a resumed training goes on with the prompts that are left",
            **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), LAYERS),
        }
        for name, reason in reasons.items():
            if getattr(self, name):
                raise ValueError(f"{name} is not an option of PPO here: {reason}.")
        if self.save_strategy == "best":
            raise ValueError(f"save_strategy is 'best', but checkpoints are there to resume from; {BEST}.")
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            raise ValueError(
                "lr_scheduler_type is 'reduce_lr_on_plateau', which waits for an evaluation loss; PPO has none."
            )
        if not self.disable_dropout:
            raise ValueError("disable_dropout is False; dropout makes the ratio of policy and old policy noise.")

    def _check_choices(self) -> None:
        if self.kl_estimator == "k3":
            raise ValueError(
                "kl_estimator is 'k3', which estimates the KL well but does not regularise when it is paid as a "
                "reward: a token made rarer costs more and falls further (docs/ppo.md has the experiment). Leave it at "
                "'k1'; objective/kl_k3 is logged beside."
            )
        for name in ("value", "kl_estimator", "score_combination", "score_normalization",
                     "score_normalization_by", "old_logprobs", "vllm_weights", "decoding", "keep", "side_guard",
                     "alarm_action"):  # fmt: skip
            allowed = get_args(type(self).__annotations__[name])
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(map(repr, allowed))}."
                )
        if self.old_logprobs == "rollout":
            if self.value != "shared":
                raise ValueError("old_logprobs 'rollout' takes the values from sampling too; it needs value: shared.")
            if others := sampled_otherwise(self):
                raise ValueError(
                    f"old_logprobs is 'rollout', but {others[0]} takes another loop to sample than ours, which alone "
                    "keeps what it computes; remove that, or leave old_logprobs 'rescored'."
                )
            if self.decoding == "compiled":
                raise ValueError(
                    "old_logprobs is 'rollout', and decoding 'compiled': a compiled step does not show the states that "
                    "values are read of. Leave old_logprobs 'rescored'."
                )
        if self.score_normalization_by != "all" and self.score_normalization == "none":
            raise ValueError(
                "score_normalization_by is set, but score_normalization is 'none'; set that to 'scale' or 'whiten'."
            )
        if self.score_combination != "weighted" and self.reward_weights is not None:
            raise ValueError(
                f"reward_weights is set, but score_combination {self.score_combination!r} takes the scores as they "
                "are; remove one."
            )
        if self.fp16:
            raise ValueError(
                "fp16 is set; its loss scaling cannot pass over the steps that PPO's guards skip. Use bf16, or neither."
            )
        if self.cache_implementation is not None:
            GenerationConfig(cache_implementation=self.cache_implementation)  # refuses one that it does not know
        self._check_decoding()
        if self.micro_batch_tokens is not None and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "micro_batch_tokens and gradient_accumulation_steps both cut a mini-batch into micro-batches; leave "
                "gradient_accumulation_steps at 1 and raise per_device_train_batch_size."
            )
        if self.keep == "best" and self.eval_strategy == "no":
            raise ValueError(
                "keep is 'best', but nothing is evaluated in training; set eval_rollouts (in a recipe, give "
                "ppo.eval_prompts more than 0)."
            )

    def _check_decoding(self) -> None:
        """`decoding` and `merge_for_sampling` are of our own loop; what is sampled without it does not know them."""
        asked = {"decoding": self.decoding != "auto", "merge_for_sampling": self.merge_for_sampling}
        mine, others = [name for name, there in asked.items() if there], sampled_otherwise(self)
        if mine and others:
            raise ValueError(f"{mine[0]} and {others[0]} both say how responses are sampled; set one of them.")

    def _check_ranges(self) -> None:
        for name in ("kl_coef", "vf_coef", "missing_eos_penalty", "cliprange", "cliprange_value", "ptx_coef",
                     "score_spread_coef", "value_warmup_rollouts", "preview_best_of"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        for name in ("adaptive_kl_target", "adaptive_kl_horizon", "kl_limit", "ratio_limit", "update_kl_limit",
                     "keep_kl_limit", "importance_cap", "micro_batch_tokens", "value_alarm",
                     "entropy_alarm"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be over 0.")
        rollout = int(self.generation_batch_size)
        if self.adaptive_kl_target is not None and self.adaptive_kl_horizon * 5 <= rollout:
            raise ValueError(
                f"adaptive_kl_horizon is {self.adaptive_kl_horizon}, at most a fifth of a rollout's {rollout} replies: "
                f"one could bring kl_coef to 0 or below; raise it (to {rollout} it moves by a fifth at most)."
            )
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1.")
        if not 0 < self.side_guard_level < 1:
            raise ValueError(f"side_guard_level is {self.side_guard_level}; it must be over 0 and under 1.")
        for name in ("num_ppo_epochs", "response_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be over 0.")
        if self.samples_with_bias:
            warnings.warn(
                "top_p, top_k, min_p or repetition_penalty change what is sampled but not the log-probabilities that "
                "PPO compares, so its ratios are biased; leave them at 1, 0, None and 1 unless that is intended.",
                stacklevel=4,
            )
