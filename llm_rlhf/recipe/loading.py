"""A recipe: one YAML file that says what is trained on what, checked whole before anything is loaded.

1. The file is read with a safe loader; `key=value` overrides are laid over it.
2. Our own sections become the dataclasses of sections.py, checked by checks.py.
3. Stage sections also take every field of the trainer's configuration class (SFTConfig, RewardConfig, PPOConfig, or
   another method's), checked by name and by type, and the configuration is built once, so that its own contradictions
   show now.
4. Whatever does not fit is a RecipeError that names the key, the value, the rule and the remedy.
"""

import dataclasses
import importlib
import json
import math
import sys
import typing
from pathlib import Path
from typing import Any

from llm_rlhf.errors import RecipeError, shown
from llm_rlhf.launch import WAITS, has_accelerator, on_one_gpu, processes, speaks_for_all, uses_deepspeed, uses_fsdp
from llm_rlhf.recipe.checks import check_reward, check_scores, check_together
from llm_rlhf.recipe.limits import check_training
from llm_rlhf.recipe.names import check_folder, check_name
from llm_rlhf.recipe.sections import (
    METHODS,
    STAGE_OPTIONS,
    Recipe,
    method_options,
    option_names,
    scored_method,
    stage_options,
)
from llm_rlhf.recipe.values import lay_over, nearest, read_section, typed, unknown_choice, unknown_key
from llm_rlhf.recipe.yaml_text import read_mapping
from llm_rlhf.redaction import Found, found_in, redacted_tree
from llm_rlhf.shipped import shipped


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = (), to_run: bool = True) -> Recipe:
    """Read, override, check and resolve one recipe.

    Args:
        path: YAML file; one that lies in a run folder goes on with that run, unless it or an override says otherwise.
        overrides: `section.key=value` each; the value is read as YAML, list items are addressed by number.
        to_run: False: the run is there, and only looked at.

    Raises:
        RecipeError: for whatever a person can mend in the file or the command line.
    """
    path = Path(path)
    try:
        tree = read_mapping(path)
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")]) if path.parent.is_dir() else ""
        if path.parts[:1] == ("recipes",) and (shipped("recipes") / path.relative_to("recipes")).is_file():
            near = " It comes with the package: llm-rlhf init --recipes copies it here."
        raise RecipeError(f"There is no recipe at {path}.{near}") from None
    of_a_run = path.name == "recipe.yaml" and (path.parent / "manifest.json").is_file()
    if of_a_run:  # perhaps moved
        tree["output_dir"] = str(path.parent)
    _whole_rounds(tree)
    for override in overrides:
        lay_over(tree, override)
        _whole_rounds(tree)
    secrets = list(found_in(tree))
    if secrets and to_run:
        raise RecipeError(_told_of(secrets[0]))
    if secrets:
        tree = redacted_tree(tree)
        if speaks_for_all():
            print(f"warning: {path} holds {secrets[0].what} ('{secrets[0].key}'); take it out.", file=sys.stderr)
    recipe = read_section(Recipe, tree, "")
    if not of_a_run:  # which has a place already
        check_name(recipe.name)
        check_folder(recipe.output_dir)
    check_together(recipe)
    _check_report_to(recipe.report_to)
    _check_trainer_sections(recipe)
    if recipe.reward is not None:
        check_reward(recipe)
    if scored_method(recipe) is not None:
        check_scores(recipe)
    return recipe


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run's folder, to be looked at, wherever it lies and whatever it is called.

    Raises as `load_recipe`, but for a secret that an older version has left in it, which is told and left out.
    """
    return load_recipe(run / "recipe.yaml", [f"output_dir={json.dumps(str(run))}"], to_run=False)


def _whole_rounds(tree: dict[str, Any]) -> None:
    """`rounds: 3` as the section that it stands for."""
    if isinstance(count := tree.get("rounds"), int) and not isinstance(count, bool):
        tree["rounds"] = {"count": count}


def _told_of(found: Found) -> str:
    """What to say of a token, key or password in a recipe; its value is not shown."""
    return (
        f"Recipe key '{found.key}' holds {found.what} (not shown here). A recipe is copied into its run's folder, its "
        f"reports and its trackers, where others read it: take it out, and "
        f"{PASSWORD if found.key == 'feedback.store' else found.remedy}."
    )


PASSWORD = "put the password into the environment (export PGPASSWORD=...) or into ~/.pgpass, where PostgreSQL looks"
# Keys of the trainers' classes that the run decides, with the place that decides them.
DECIDED_ELSEWHERE = {
    "output_dir": "the recipe's output_dir",
    "seed": "the recipe's seed",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "model_init_kwargs": "the model section",
    "torch_compile": "model.compile, layer by layer,",
    "torch_compile_backend": "model.compile, layer by layer,",
    "torch_compile_mode": "model.compile, layer by layer,",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template_path": "model.chat_template",
    "chat_template_kwargs": "model.chat_template_kwargs",
    "assistant_only_loss": "the row formats: only the assistant's replies are trained on",
    "completion_only_loss": "the row formats: only the assistant's replies are trained on",
    "dataset_text_field": "the row formats",
    "eos_token": "the tokenizer and its chat template",
    "pad_token": "the tokenizer and its chat template",
    "resume_from_checkpoint": "running the same recipe again",
    "save_only_model": "the run, which goes on from whole checkpoints,",
    "ignore_data_skip": "the run, which goes on with the rows that are left,",
    "enable_jit_checkpoint": "the run, which writes a checkpoint on SIGTERM,",
    "do_train": "the presence of the section",
    "do_eval": "the presence of the section",
    "do_predict": "the presence of the section",
}


# Keys of other methods' trainers that are not carried out as they stand, with the reason.
LEFT_TO_PPO = {
    "sync_ref_model": "the reference is the base with its adapter off",
    "use_vllm": "only PPO samples by vLLM here, as TRL would send it the reward adapters too",
    "use_transformers_continuous_batching": "TRL rounds the weights it trains for it; only PPO leaves them as they are",
    "use_transformers_paged": "TRL rounds the weights it trains for it; only PPO leaves them as they are",
}


def trainer_config(recipe: Recipe, stage: str, output_dir: str | Path) -> Any:
    """The configuration object of one stage's trainer.

    The section's own values come first, then the run's (folder, seed, compute type), then defaults that suit a stage
    inside a run: checkpoints to go on from after an interruption, no tracker unless asked for.
    """
    section = {key: value for key, value in getattr(recipe, stage).items() if key not in option_names(stage)}
    decided: dict[str, Any] = {
        "output_dir": str(output_dir),
        "seed": recipe.seed,
        "bf16": recipe.model.dtype == "bfloat16",
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen, not smoothed over
    }
    if any(field.name == "trust_remote_code" for field in dataclasses.fields(config_class_of(stage))):
        decided["trust_remote_code"] = recipe.model.trusts_base
    config = config_class_of(stage)(**{**run_defaults(recipe, stage), **section, **decided})
    on_one_gpu(config)
    if stage in ("grpo", "rloo"):
        _settle_length(config, section, stage_options(recipe, stage).total_episodes)
    return config


def run_defaults(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What a run sets of a trainer's configuration where the recipe says nothing and the class would say otherwise."""
    section = getattr(recipe, stage) or {}
    defaults: dict[str, Any] = {"save_strategy": "no", "report_to": "none"}
    if not (uses_fsdp() or uses_deepspeed()):  # neither could read a checkpoint back
        # shares of the run, rounded up to whole rollouts; two, as one may turn out to be damaged
        defaults |= {"save_strategy": "steps", "save_steps": 0.1 if stage in METHODS else 0.2, "save_total_limit": 2}
    if stage in ("dpo", "kto", "best_of_n"):
        defaults["remove_unused_columns"] = False  # every column is ours, and meant
    if stage == "ppo":
        if section.get("score_combination", "weighted") == "weighted" and (weights := default_weights(recipe)):
            defaults["reward_weights"] = weights
        if stage_options(recipe, stage).eval_prompts:
            defaults |= {"eval_strategy": "steps", "eval_steps": 0.125, "per_device_eval_batch_size": 32}
            if section.get("eval_strategy") != "no" and section.get("eval_on_start") is not False:
                defaults["preview_best_of"] = 8
    defaults["use_cpu"] = not has_accelerator()  # bfloat16 and several processes must be told
    return defaults


def default_weights(recipe: Recipe) -> list[float] | None:
    """Of several reward adapters: equal weights that add up to 1, and 1 for each of `reward_funcs`. Of one: None."""
    adapters = stage_options(recipe, "reward").adapters
    if len(adapters) < 2:
        return None
    return [1 / len(adapters)] * len(adapters) + [1.0] * len(method_options(recipe).reward_funcs)


def _settle_length(config: Any, section: dict[str, Any], total_episodes: int | None) -> None:
    """`total_episodes` as optimizer steps; and a line of metrics for every rollout, where nothing else is said.

    The steps are those of a single epoch; `steps_for` knows how many prompts there are.
    """
    rollout, accumulated = config.steps_per_generation * config.num_iterations, config.gradient_accumulation_steps
    if rollout % accumulated and accumulated % rollout:
        raise ValueError(
            f"a rollout is steps_per_generation x num_iterations = {rollout} micro-batches, and "
            f"gradient_accumulation_steps is {accumulated}; one of the two must be a multiple of the other, as steps "
            "would end in the middle of a rollout, which no checkpoint holds."
        )
    if total_episodes is not None:
        if config.max_steps > 0:
            raise ValueError("total_episodes and max_steps both say how long to train; set one of them.")
        rollouts = -(-total_episodes // config.generation_batch_size)
        micro_batches = rollouts * config.steps_per_generation * config.num_iterations
        config.max_steps = -(-micro_batches // config.gradient_accumulation_steps)
    if "logging_steps" not in section:
        config.logging_steps = steps_per_rollout(config)


def steps_per_rollout(config: Any) -> int:
    """Optimizer steps of GRPO or RLOO after which a rollout is used up, or several are."""
    micro_batches: int = config.steps_per_generation * config.num_iterations
    return micro_batches // math.gcd(micro_batches, config.gradient_accumulation_steps)


def steps_for(config: Any, total_episodes: int, prompts: int) -> int:
    """Optimizer steps of GRPO or RLOO in which at least so many replies are sampled, to so many prompts over and over.

    An epoch's last step takes the micro-batches that are left, which may be fewer than `gradient_accumulation_steps`.
    """
    rollout, accumulated = config.steps_per_generation * config.num_iterations, config.gradient_accumulation_steps
    epoch = prompts // (config.generation_batch_size // config.num_generations) * rollout
    wanted = -(-total_episodes // config.generation_batch_size) * rollout
    return wanted // epoch * -(-epoch // accumulated) + -(-(wanted % epoch) // accumulated)


UNTRAINED = (128, 1.0)  # tokens of a reply and temperature where no method samples in training


def sampling(recipe: Recipe) -> tuple[int, float] | None:
    """Tokens of a reply at most, and temperature, as the recipe's method samples in training; None where none does."""
    method = scored_method(recipe)
    if method is None:
        return None
    if method == "best_of_n":
        options = stage_options(recipe, method)
        return options.response_length, options.temperature
    config = trainer_config(recipe, method, recipe.folder / method)
    return config.max_completion_length, config.temperature


def length_key(recipe: Recipe) -> str:
    """What the longest reply in tokens is called in the section of the recipe's method."""
    return "max_completion_length" if recipe.method in ("grpo", "rloo") else "response_length"


def _check_trainer_sections(recipe: Recipe) -> None:
    """Every field by name and type, then the whole configuration by its own constructor."""
    for stage in ("sft", "reward", *METHODS):
        section = getattr(recipe, stage)
        if section is None:
            continue
        config_class = config_class_of(stage)
        hints = typing.get_type_hints(config_class)
        if stage in STAGE_OPTIONS:
            hints |= typing.get_type_hints(STAGE_OPTIONS[stage])
        known = [f.name for f in dataclasses.fields(config_class) if f.init] + sorted(option_names(stage))
        for key, value in section.items():
            if key in DECIDED_ELSEWHERE:
                raise RecipeError(
                    f"Recipe key '{stage}.{key}' is set to {shown(value)}, but {DECIDED_ELSEWHERE[key]} decides it; "
                    "remove the key."
                )
            if stage in METHODS and stage != "ppo" and key in LEFT_TO_PPO and value:
                raise RecipeError(f"Recipe key '{stage}.{key}' is {shown(value)}, but {LEFT_TO_PPO[key]}; remove it.")
            if key not in known:
                raise RecipeError(unknown_key(f"{stage}.", key, value, known))
            section[key] = typed(hints[key], value, f"{stage}.{key}")
        check_training(stage, section)
        try:
            _begin_processes(recipe)
            config = trainer_config(recipe, stage, recipe.folder / stage)
        except (ImportError, OSError, RuntimeError) as error:  # a package, a file or a device that is not here
            raise RecipeError(f"Recipe section '{stage}' asks for what is not here: {error}") from None
        except Exception as error:  # what a library's class makes of any value at all
            raise RecipeError(f"Recipe section '{stage}' contradicts itself: {error}") from None
        _check_trackers(stage, config.report_to)
        _check_evaluation(recipe, stage, config)


def _begin_processes(recipe: Recipe) -> None:
    """Let the processes of the launch find each other; else the first section's trainer would, by its own timeout."""
    waits = [(getattr(recipe, stage) or {}).get("ddp_timeout") for stage in ("sft", "reward", *METHODS)]
    given = [float(seconds) for seconds in waits if isinstance(seconds, (int, float)) and seconds > 0]
    processes(max(given, default=WAITS))


def _check_evaluation(recipe: Recipe, stage: str, config: Any) -> None:
    """What a trainer is to evaluate on, or to choose by, is not there: it would say so when its stage begins."""
    if stage == "ppo":
        if config.eval_strategy != "no" and not stage_options(recipe, stage).eval_prompts:
            raise RecipeError(
                f"Recipe key 'ppo.eval_strategy' is {config.eval_strategy.value!r}, but 'ppo.eval_prompts' is 0, so "
                "that there is nothing to evaluate on; change one of them."
            )
        return
    for key, is_set in (
        ("eval_strategy", config.eval_strategy != "no"),
        ("load_best_model_at_end", config.load_best_model_at_end),
        ("save_strategy", config.save_strategy == "best"),
        ("metric_for_best_model", config.metric_for_best_model is not None),
    ):
        if is_set:
            found = getattr(config, key)
            raise RecipeError(
                f"Recipe key '{stage}.{key}' is {getattr(found, 'value', found)!r}, but this stage keeps no rows back "
                "to evaluate on while it trains; remove it. What comes of it is measured by the later stages."
            )


def _check_report_to(trackers: list[str]) -> None:
    """A tracker that is not known, or not installed."""
    if not trackers:
        return
    from llm_rlhf.tracking import known_trackers, missing_package

    for name in trackers:
        if name not in known_trackers():
            raise RecipeError(unknown_choice("report_to", name, known_trackers()))
        if (package := missing_package(name)) is not None:
            raise RecipeError(
                f"Recipe key 'report_to' names {name!r}, which is not installed: pip install {package}, or take it out."
            )


def _check_trackers(stage: str, trackers: list[str]) -> None:
    """A tracker that is not installed would stop the run only when its stage begins, perhaps hours from now."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    for name in trackers:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["none", "all", *INTEGRATION_TO_CALLBACK]
            raise RecipeError(unknown_choice(f"{stage}.report_to", str(name), known))
        if name not in get_available_reporting_integrations():
            raise RecipeError(
                f"Recipe key '{stage}.report_to' names {name!r}, which is not installed; install it with pip, or "
                "set it to none."
            )


# Where the configuration class of each stage's trainer is found; importing one takes seconds.
TRAINER_CONFIGS = {
    "sft": "trl:SFTConfig",
    "reward": "trl:RewardConfig",
    "ppo": "llm_rlhf.ppo.config:PPOConfig",
    "grpo": "trl:GRPOConfig",
    "rloo": "trl:RLOOConfig",
    "dpo": "trl:DPOConfig",
    "kto": "trl:KTOConfig",
    "best_of_n": "trl:SFTConfig",
}


def config_class_of(stage: str) -> type:
    module, _, name = TRAINER_CONFIGS[stage].partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found
