"""What every stage of a recipe would hold at most, and write: rows and shapes put into the stages' largest steps.

Nothing is loaded but the base's configuration and its tokenizer.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from llm_rlhf.ahead import TRAINED, Ahead, check_rows, look_ahead
from llm_rlhf.data.splits import Splits
from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.finding import find_config
from llm_rlhf.models.memory import reading_budget, token_budget
from llm_rlhf.models.merged import copied_bytes
from llm_rlhf.models.reply_decoding import compiles as decodes_compiled
from llm_rlhf.models.reply_decoding import decoding_steps
from llm_rlhf.models.roles import HELDOUT
from llm_rlhf.models.sampler import cache_bytes, fitting_rows, fixed_length
from llm_rlhf.models.whole import is_whole
from llm_rlhf.pipeline import STAGES
from llm_rlhf.plan import steps
from llm_rlhf.plan.engine import ENGINE, engine_bytes, engine_note, sample_by_engine
from llm_rlhf.plan.kernels import on_cuda
from llm_rlhf.plan.live_memory import LiveMemory
from llm_rlhf.plan.machine import keeps_freed_memory
from llm_rlhf.plan.models import Blueprint, causal_lm, reward_model, weight_bytes, without_data
from llm_rlhf.plan.rows import Lists, Measured, Measuring, optimizer_steps
from llm_rlhf.plan.steps import Simulation
from llm_rlhf.ppo.generation import compiles
from llm_rlhf.ppo.preparation import checkpoint_with_adapters
from llm_rlhf.recipe.loading import UNTRAINED, sampling, trainer_config
from llm_rlhf.recipe.sections import OFFLINE, ONLINE, Recipe, stage_options, trains_reward
from llm_rlhf.reward.adapters import plan_adapters, whole_rewards
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import data_section, read_data
from llm_rlhf.world.files import write_files
from llm_rlhf.world.gold import GoldWorld

SCORED_AT_ONCE = 32  # rows, where a stage does not say (models/inference.py)
# Bytes of optimizer state for each trained number; those not named are taken for AdamW's two float32.
OPTIMIZERS = {"8bit": 2.0, "4bit": 1.0, "sgd": 0.0, "adafactor": 0.0, "adagrad": 4.0, "lion": 4.0, "rmsprop": 4.0}
ADAMW = 8.0
SNAPSHOTS = 8  # of a policy in training, about


@dataclass
class StagePlan:
    """One stage.

    Attributes:
        rows: what it takes, by list.
        optimizer_steps: of its training; None: it trains nothing.
        memory: bytes by kind at the peak of each of its steps, by the step's name.
        disk: bytes that it leaves.
        seconds: that it takes, where that was tried (plan/probe.py).
    """

    stage: str
    rows: dict[str, Measured] = field(default_factory=dict)
    optimizer_steps: int | None = None
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    disk: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float | None = None

    @property
    def largest(self) -> str:
        """The step with the highest peak; empty where nothing is loaded."""
        return max(self.memory, key=lambda name: sum(self.memory[name].values()), default="")

    @property
    def bytes(self) -> int:
        """What its models, and what they compute, hold at most."""
        return sum(self.memory[self.largest].values()) if self.memory else 0


class Forecast:
    """A recipe with its rows measured.

    Args:
        device: "cpu" or "cuda": where the run would compute.
        there: its memory in bytes, by which a run settles some sizes on CUDA; None: taken for large.

    Raises:
        RecipeError, DataError: what would end the run before anything is loaded.
    """

    def __init__(self, recipe: Recipe, device: str, there: int | None = None) -> None:
        self.recipe, self.device, self.there = recipe, device, there
        self.stages = [stage for stage in STAGES if getattr(recipe, stage) is not None]
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(folder)  # the run's own is left alone
            ahead = look_ahead(recipe, run, self.stages, load_models=False)
            if recipe.world is not None:
                (run / "world").mkdir()
                write_files(GoldWorld(recipe.world, recipe.seed), run / "world")
            if recipe.feedback is not None:
                from llm_rlhf.feedback.snapshot import look_at  # and a database, which others do not need

                (run / "collect").mkdir()
                look_at(recipe.feedback.store, run / "collect", recipe.feedback.margins)
            splits, _ = read_data(recipe, run)
            if recipe.rounds is not None and recipe.rounds.imitation:
                from llm_rlhf.rounds.imitation import foreseen

                splits = foreseen(splits, data_section(recipe, run))
            check_rows(ahead, splits)
            self.config = find_config(ahead.base, recipe.model, "Recipe key 'model.base':")
            self.tokens = len(ahead.tokenizer)
            self.lists = self._measure(ahead, splits)
        self.context, self.base = ahead.context, ahead.base

    def _measure(self, ahead: Ahead, splits: Splits) -> Lists:
        recipe = self.recipe
        adapters: dict[str, Sequence[Any]] = {}
        if "reward" in ahead.configs:
            plans = plan_adapters(stage_options(recipe, "reward"), list(splits.reward_pairs), recipe.seed)
            adapters = {plan.name: plan.pairs for plan in plans}
            if len(splits.heldout_pairs):
                adapters[HELDOUT] = splits.heldout_pairs
        return Measuring(recipe, ahead.tokenizer, ahead.context, ahead.configs).lists(splits, adapters)

    def plan(self) -> list[StagePlan]:
        """Every stage of the recipe."""
        return [self.stage(self.recipe, stage) for stage in self.stages]

    def stage(self, recipe: Recipe, stage: str) -> StagePlan:
        """One stage; of the same recipe with other values, too, as long as they add no rows and make none longer."""
        return _Stage(self, recipe, stage).planned()


class _Stage:
    """What one stage runs, on models without data."""

    def __init__(self, forecast: Forecast, recipe: Recipe, stage: str) -> None:
        self.recipe, self.stage, self.lists = recipe, stage, forecast.lists
        self.device, self.on_cpu = forecast.device, forecast.device == "cpu"
        self.heap = self.on_cpu and keeps_freed_memory()
        self.plain = self.on_cpu and recipe.model.quantization == "none"
        self.known, self.there = forecast.there, math.inf if forecast.there is None else forecast.there
        self.blueprint = Blueprint(forecast.config, recipe.model, forecast.tokens)
        trains = stage in TRAINED and (stage != "reward" or trains_reward(recipe))
        self.config: Any = trainer_config(recipe, stage, recipe.folder / stage) if trains else None
        self.found = StagePlan(stage)
        self.context = min(forecast.context, recipe.model.context_length or forecast.context)

    def planned(self) -> StagePlan:
        methods = {
            "sft": self._sft, "reward": self._reward, "ppo": self._ppo, "grpo": self._online, "rloo": self._online,
            "dpo": self._offline, "kto": self._offline, "best_of_n": self._best_of_n, "evaluate": self._evaluate,
        }  # fmt: skip
        if self.stage in methods:
            with without_data(), on_cuda(not self.on_cpu):
                methods[self.stage]()
        if self.config is not None:
            self._note_what_is_left_out()
        return self.found

    # ---- the stages --------------------------------------------------------------------------------------------

    def _sft(self) -> None:
        rows = self._rows("demonstrations", self.lists.sft, self._limit())
        length = self._limit() if self.config.packing else rows.longest
        simulation = self._simulation(causal_lm(self.blueprint, ("log_probs", "entropy", "is_top1")))
        self._train(simulation, rows.rows)
        steps.imitate(simulation, self.config.per_device_train_batch_size, self._padded(length))
        self._keep(simulation)
        whole = weight_bytes(self.blueprint.config, self.blueprint.dtype, self.recipe.model.trusts_base)
        adapter = self._adapter_bytes(simulation)
        self.found.memory["merging"] = {steps.BASE: whole, steps.ADAPTERS: adapter}
        self.found.disk = whole + adapter + self._checkpoint_bytes(adapter)

    def _reward(self) -> None:
        if self.config is None:
            return
        lists = self.lists.reward or {}
        found = [self._rows(f"pairs of {name}", rows, self._limit()) for name, rows in lists.items()]
        longest = max(rows.longest for rows in found)
        simulation = self._simulation(reward_model(self.blueprint))
        self._train(simulation, *(rows.rows for rows in lists.values()))
        steps.prefer_pairs(simulation, self.config.per_device_train_batch_size, self._padded(longest))
        self._keep(simulation)
        adapter = self._adapter_bytes(simulation)
        self.found.disk = (adapter + self._checkpoint_bytes(adapter)) * len(lists)
        options = stage_options(self.recipe, "reward")
        simulation = self._reading(list(lists))
        if options.reference_samples:
            rows_at_once = min(options.reference_samples, SCORED_AT_ONCE)
            prompt = min(longest, self.context - options.reference_length)
            steps.sample(simulation, rows_at_once, prompt, options.reference_length, draws=True, adapters=())
        if self.lists.evaluation_pairs is not None:
            longest = min(self.lists.evaluation_pairs.longest, self._limit())
            self._read(simulation, SCORED_AT_ONCE, longest, list(lists), with_policy=False)
        self._keep(simulation)

    def _ppo(self) -> None:
        config, options, R = self.config, stage_options(self.recipe, "ppo"), self.config.response_length
        prompts = self._prompts(R)
        P = prompts.longest
        if config.gradient_checkpointing and config.value == "adapter":
            checkpoint_with_adapters(config)
        B, rollout = config.per_device_train_batch_size, self._rollout()
        rewards = self._rewards()
        kept = self.lists.kept_back
        evaluates = bool(options.eval_prompts and kept is not None and kept.rows)
        heldout = [HELDOUT] if evaluates and self._has_heldout() else []
        simulation = self._simulation(
            causal_lm(self.blueprint, rewards=[*rewards, *heldout], value=config.value), tiled=True
        )
        engine = engine_bytes(config, self.device, self.known)
        if engine and not config.vllm_enable_sleep_mode:
            simulation.hold_beside(engine, ENGINE)
        merges = not config.use_vllm and config.merge_for_sampling is not False
        merged = self._merged(simulation, rounds=True) if merges else 0
        tokens = config.micro_batch_tokens or self._budget(simulation)
        imitated = 0 if self.lists.demonstrations is None else min(self.lists.demonstrations.longest, self.context)
        rows = B if tokens is None else max(1, min(B, tokens // (P + R + imitated)))
        compiled = compiles(config, "cpu" if self.on_cpu else "cuda")
        if not config.use_vllm:
            length = fixed_length(P, R) if compiled else 0
            if compiled:
                each = length * cache_bytes(self.blueprint.config, self.blueprint.dtype)
                rollout = fitting_rows(rollout, each, self._free(simulation) - merged)
            steps.sample(simulation, rollout, P, R, self.on_cpu, merged, length=length)
        if compiled:  # which keeps both for the run
            cache = simulation.steps["sampling, last token"][steps.CACHE]
            simulation.hold_beside(cache, steps.CACHE)
            simulation.hold_beside(merged, steps.MERGED)
            merged = 0
        if evaluates and kept is not None:
            size, longest = min(config.per_device_eval_batch_size, kept.rows), min(kept.longest, self.context - R)
            if not compiled and not config.use_vllm:  # compiled, its batches are filled up to a rollout's
                steps.sample(simulation, size, longest, R, self.on_cpu, merged, "evaluation")
            steps.score_rollout(simulation, size, longest, R, [*rewards, *heldout], "evaluation, scoring")
        steps.score_rollout(simulation, rows, P, R, rewards)
        self._train(simulation, prompts.rows)
        if engine and config.vllm_enable_sleep_mode:
            sample_by_engine(simulation, engine)
        steps.update_policy(simulation, rows, P, R, config.cliprange, imitated)
        self._keep(simulation)
        self._leave_policy(simulation)

    def _online(self) -> None:
        R, B = self.config.max_completion_length, self.config.per_device_train_batch_size
        prompts = self._prompts(R)
        P = prompts.longest
        rewards = self._rewards()
        simulation = self._simulation(causal_lm(self.blueprint, rewards=rewards))
        steps.sample(simulation, self._rollout(), P, R, self.on_cpu, self._merged(simulation, rounds=False))
        steps.read_rows(simulation, B, P + R, rewards)
        self._train(simulation, prompts.rows)
        steps.compare_within_group(simulation, B, P + R)
        self._keep(simulation)
        self._leave_policy(simulation)

    def _offline(self) -> None:
        rows = self._rows("pairs", self.lists.pairs, self._limit())
        simulation = self._simulation(causal_lm(self.blueprint))
        self._train(simulation, rows.rows * (1 if self.stage == "dpo" else 2))
        replies = self.config.per_device_train_batch_size * (2 if self.stage == "dpo" else 1)
        steps.compare_with_reference(simulation, replies, self._padded(rows.longest))
        self._keep(simulation)
        self._leave_policy(simulation)

    def _best_of_n(self) -> None:
        options = stage_options(self.recipe, "best_of_n")
        R, B = options.response_length, options.sampling_batch_size
        prompts = self._prompts(R)
        P = prompts.longest
        simulation = self._reading(self._rewards())
        steps.sample(simulation, B, P, R, draws=True, adapters=())
        self._read(simulation, B, P + R, self._rewards(), with_policy=False)
        self._keep(simulation)
        simulation = self._simulation(causal_lm(self.blueprint, ("log_probs", "entropy", "is_top1")))
        self._train(simulation, min(prompts.rows, options.prompts or prompts.rows))
        longest = min(P + R, self._limit())
        steps.imitate(simulation, self.config.per_device_train_batch_size, self._padded(longest))
        self._keep(simulation)
        self._leave_policy(simulation)

    def _evaluate(self) -> None:
        section = self.recipe.evaluate
        if self.recipe.method is None or section is None:
            return
        R, B = section.response_length or (sampling(self.recipe) or UNTRAINED)[0], section.batch_size
        prompts = self._rows("evaluation prompts", self.lists.evaluation_prompts, self.context - R)
        rewards = [*self._rewards(), *([HELDOUT] if self._has_heldout() else [])]
        snapshot = ["snapshot"] if "overoptimization" in section.suites and rewards else []
        simulation = self._reading([*rewards, *snapshot])
        P, rows = prompts.longest, min(B, prompts.rows)
        most = prompts.rows + (section.snapshot_prompts * (1 + section.best_of_n) if snapshot else 0)  # of the start
        if decodes_compiled(section.decoding, decoding_steps(most, B, R), "cpu" if self.on_cpu else "cuda"):
            merged, length = self._merged(simulation, rounds=False), fixed_length(P, R)
            each = length * cache_bytes(self.blueprint.config, self.blueprint.dtype)
            filled = fitting_rows(B, each, self._free(simulation) - merged)
            steps.sample(simulation, filled, P, R, draws=True, merged=merged, length=length)
            simulation.hold_beside(simulation.steps["sampling, last token"][steps.CACHE], steps.CACHE)  # for the stage
            simulation.hold_beside(merged, steps.MERGED)
        else:
            steps.sample(simulation, rows, P, R, draws=True)
        self._read(simulation, rows, P + R, rewards)
        pairs = self.lists.evaluation_pairs
        if pairs is not None and pairs.rows:
            longest = min(pairs.longest, self.context)
            named = {"name": "held-out pairs", "with_policy": bool(section.perplexity_rows)}
            self._read(simulation, min(B, pairs.rows), longest, rewards, **named)
        self._keep(simulation)
        if section.judge is not None or section.reference is not None:
            self.found.notes.append("models that evaluate.judge or evaluate.reference name are not counted")
        if section.own or section.benchmarks or section.hhh or section.pairs:
            self.found.notes.append("prompts of own suites, public suites, hhh and pairs were not measured")

    # ---- what they have in common ------------------------------------------------------------------------------

    def _simulation(self, model: Any, tiled: bool = False) -> Simulation:
        """A model as a trainer holds it."""
        found = Simulation(
            model, self._memory(), self.recipe.model.dtype == "bfloat16", tiled and self.plain, self.heap, self.device
        )
        beside = 0 if self.stage not in ONLINE else self._whole_rewards()
        if beside:
            found.hold_beside(beside)
        return found

    def _reading(self, rewards: Sequence[str]) -> Simulation:
        """The base with reward models as `load_roles` makes it, where nothing is trained."""
        model = causal_lm(self.blueprint, rewards=rewards, trains=False).eval()
        return Simulation(model, self._memory(), tiled=self.plain, heap=self.heap, device=self.device)

    def _read(self, simulation: Simulation, rows: int, length: int, rewards: Sequence[str], **how: Any) -> None:
        """A batch that is read in one forward, or in several within the device's budget (models/inference.py)."""
        budget = reading_budget(self.device)
        rows = rows if budget is None else min(rows, max(budget // length, 1))
        steps.read_rows(simulation, rows, length, rewards, **how)

    def _memory(self) -> LiveMemory:
        return LiveMemory(self.blueprint.vocabulary)

    def _train(self, simulation: Simulation, *rows: int) -> None:
        """Settle what training adds, and count the steps of trainings on so many rows each."""
        name = str(getattr(self.config.optim, "value", self.config.optim))
        per_number = next((size for part, size in OPTIMIZERS.items() if part in name), ADAMW)
        simulation.prepare_training(self.config, per_number)
        processes = max(self.config.world_size, 1)
        self.found.optimizer_steps = sum(
            optimizer_steps(self.recipe, self.stage, self.config, count, processes) for count in rows
        )

    def _keep(self, simulation: Simulation) -> None:
        self.found.memory |= simulation.steps

    def _rows(self, name: str, rows: Measured | None, limit: int) -> Measured:
        """The list, none of whose rows is longer than this stage's limit, which may be less than the measured one's."""
        assert rows is not None, "it was measured"
        self.found.rows[name] = replace(rows, longest=min(rows.longest, limit))
        return self.found.rows[name]

    def _prompts(self, response_length: int) -> Measured:
        return self._rows("prompts", self.lists.prompts, self.context - response_length)

    def _limit(self) -> int:
        """Tokens of a row that the stage trains on, at most."""
        return min(self.config.max_length or self.context, self.context)

    def _padded(self, length: int) -> int:
        multiple = getattr(self.config, "pad_to_multiple_of", None) or 1
        return -(-length // multiple) * multiple

    def _merged(self, simulation: Simulation, rounds: bool) -> int:
        """Bytes of the copy of the policy's weights that replies are sampled from; 0 where there is none."""
        section = self.recipe.model
        if not rounds and (section.dtype != "float32" or section.quantization == "int8"):
            return 0
        layers = [m for m in simulation.base.modules() if isinstance(m, LoraLayer) and POLICY in m.lora_A]
        needed = sum(layer.in_features * layer.out_features for layer in layers) * self.blueprint.dtype.itemsize
        if is_whole(simulation.model.peft_config[POLICY]):
            needed = copied_bytes(simulation.base, POLICY, self.blueprint.dtype)
        return needed if self.on_cpu or needed <= self._free(simulation) / 3 else 0

    def _free(self, simulation: Simulation) -> float:
        """Memory beside the base and its adapters."""
        return max(0.0, self.there - simulation.memory.total)

    def _budget(self, simulation: Simulation) -> int | None:
        """Tokens of PPO's micro-batches where the recipe does not say."""
        if self.on_cpu or self.config.gradient_accumulation_steps > 1:
            return None
        return token_budget(self.blueprint.config, self.config.gradient_checkpointing, self._free(simulation))

    def _rollout(self) -> int:
        """Replies that one process samples at once."""
        return int(self.config.per_device_train_batch_size * self.config.steps_per_generation)

    def _rewards(self) -> list[str]:
        """Names of the reward adapters on the policy's base."""
        recipe = self.recipe
        if recipe.reward is None:
            return []
        return [] if whole_rewards(recipe) else list(stage_options(recipe, "reward").adapters)

    def _has_heldout(self) -> bool:
        return HELDOUT in (self.lists.reward or {})

    def _whole_rewards(self) -> int:
        """Bytes of the reward models with a base of their own."""
        if self.recipe.method in OFFLINE:
            return 0
        found = 0
        for name in whole_rewards(self.recipe):
            trust = self.recipe.model.trusts(name)
            config = find_config(name, self.recipe.model, "Recipe key 'reward.model':", trust)
            found += weight_bytes(config, self.blueprint.dtype, trust, classifier=True)
            self.found.notes.append(f"the reward model {name} is counted by its weights alone")
        return found

    def _adapter_bytes(self, simulation: Simulation) -> int:
        """Of what is trained."""
        return sum(p.numel() * p.element_size() for p in simulation.model.parameters() if p.requires_grad)

    def _checkpoint_bytes(self, trained: int) -> int:
        """Of a training's checkpoints, each the weights and Adam's two moments; one more while it is written."""
        saves = str(getattr(self.config.save_strategy, "value", self.config.save_strategy)) != "no"
        return 3 * trained * (1 + (self.config.save_total_limit or 2)) if saves else 0

    def _leave_policy(self, simulation: Simulation) -> None:
        """The policy, its snapshots, and checkpoints while it trains."""
        trained = self._adapter_bytes(simulation)
        self.found.disk = trained * (1 + SNAPSHOTS) + self._checkpoint_bytes(trained)

    def _note_what_is_left_out(self) -> None:
        left_out = {
            "packing": "rows packed together are taken for padded ones",
            "activation_offloading": "activation_offloading is not counted: activations are taken to stay",
            "use_liger_kernel": "use_liger_kernel is not counted",
            "use_transformers_continuous_batching": "the cache of continuous batching is not counted",
            "fsdp": "every process is taken to hold the whole model",
            "deepspeed": "every process is taken to hold the whole model",
        }
        self.found.notes += [note for key, note in left_out.items() if getattr(self.config, key, None)]
        if self.recipe.model.compile:
            self.found.notes.append("what compiling saves of activations, and takes beside them, is not counted")
        if getattr(self.config, "use_vllm", False):
            self.found.notes.append(engine_note(self.config, self.device, self.known))


def with_value(recipe: Recipe, key: str, value: Any) -> Recipe:
    """The recipe with another value of `section.key`."""
    section, _, name = key.partition(".")
    known = getattr(recipe, section)
    changed: dict[str, Any] = {
        section: {**known, name: value} if isinstance(known, dict) else replace(known, **{name: value})
    }
    return replace(recipe, **changed)


def compute_device() -> str:
    """Where a run on this machine would compute: "cuda", or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
