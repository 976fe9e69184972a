"""What would end a run hours from now, told before anything is trained: from the recipe, files of models, and rows.

The cheapest comes first: packages and functions, what the hub is asked, the base, reward models; then, once the rows
are read, how many there are and how long they are. Only the stages that are about to be made are looked at.
"""

import contextlib
import copy
import functools
import gc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft import PeftConfig
from safetensors import SafetensorError
from transformers import Trainer, get_scheduler
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm_rlhf.data.rows import Prompt
from llm_rlhf.data.splits import Splits
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.judges import weight_digests
from llm_rlhf.evaluation.start_samples import nowhere_to_reply
from llm_rlhf.evaluation.suites.own import suite_function
from llm_rlhf.extras import check_compiles, check_liger, check_packages, check_vllm, on_meta
from llm_rlhf.launch import gpus_of_one, processes, uses_fsdp
from llm_rlhf.methods.prompts import no_room, number_kept_back
from llm_rlhf.models.adapter_folders import base_of
from llm_rlhf.models.architecture import score_head_name
from llm_rlhf.models.base import announce, context_limit, load_tokenizer
from llm_rlhf.models.encoding import encode_whole_replies
from llm_rlhf.models.finding import check_logged_in, check_there, find_config
from llm_rlhf.models.fitting import (
    Fitted,
    fit_demonstrations,
    fit_preferences,
    fit_prompts,
    fit_ratings,
    how_many_fit,
)
from llm_rlhf.models.whole import is_whole
from llm_rlhf.ppo.preparation import check_distribution, checkpoint_with_adapters
from llm_rlhf.ppo.prompts import tell_small_rollout
from llm_rlhf.ppo.scores import THOUGHT, ScoreSources, weighing
from llm_rlhf.recipe.loading import UNTRAINED, length_key, sampling, trainer_config
from llm_rlhf.recipe.sections import (
    METHODS,
    OFFLINE,
    Recipe,
    method_options,
    scored_method,
    stage_options,
    trains_reward,
)
from llm_rlhf.reward.adapters import plan_adapters
from llm_rlhf.reward.loading import local_adapter
from llm_rlhf.reward.model import RewardModel
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import starting_model
from llm_rlhf.spreading import check_spreading
from llm_rlhf.stages.offline import nothing_fits, one_sided
from llm_rlhf.stages.ppo import nothing_to_imitate
from llm_rlhf.stages.reward import none_fits
from llm_rlhf.user_code import FUNCTION
from llm_rlhf.world.base_model import shipped_base

TRAINED = ("sft", "reward", *METHODS)
BASE = "Recipe key 'model.base':"


@dataclass
class Ahead:
    """What is about to be made, and what was found out about it.

    Attributes:
        configs: of the trainers of those stages that train.
        base: what the first stage starts from.
        context: tokens that prompt and reply may take together there.
    """

    recipe: Recipe
    stages: Sequence[str]
    configs: dict[str, Any] = field(default_factory=dict)
    base: str | Path = ""
    tokenizer: Any = None
    context: int = 0


def look_ahead(recipe: Recipe, run: RunFolder, stages: Sequence[str], load_models: bool = True) -> Ahead:
    """All that is known before rows are read.

    Args:
        stages: those that are about to be made.
        load_models: finished reward models are loaded once, to see that they can be. False: only a plan is made, which
            may be for another machine, and vLLM and Liger need not be on this one.

    Raises:
        RecipeError, DataError: what would end one of them.
    """
    ahead = Ahead(recipe, stages)
    if not stages:
        return ahead
    if "collect" in stages and recipe.feedback is not None:
        from llm_rlhf.feedback.snapshot import check as check_store  # and a database, which others do not need

        with _of_key("feedback.store"):
            check_store(recipe.feedback.store)
    if "evaluate" in stages and recipe.evaluate and recipe.evaluate.judge and recipe.method is not None:
        from llm_rlhf.feedback.judging import check_store_of

        with _of_key("evaluate.judge"):
            check_store_of(recipe.evaluate.judge)
    trained = [stage for stage in TRAINED if stage in stages and (stage != "reward" or trains_reward(recipe))]
    ahead.configs = {stage: trainer_config(recipe, stage, run / stage) for stage in trained}
    ahead.base = shipped_base() if "world" in stages else starting_model(recipe, run, before=stages[0])
    check_spreading(recipe, ahead.configs)
    check_packages(recipe, ahead.configs, for_this_machine=load_models)
    if load_models and ahead.configs and (gpus := gpus_of_one()) > 1:
        announce(
            f"{gpus} GPUs are here, and this one process uses the first alone; for all: "
            "accelerate launch -m llm_rlhf run ..."
        )
    for stage, config in ahead.configs.items():
        _check_optimizer(stage, config)
    _check_functions(ahead)
    _check_hub(ahead.configs)
    _check_base(ahead)
    if load_models and scored_method(recipe) in ahead.configs:
        _check_reward_models(recipe, ahead.base)
    if "ppo" in ahead.configs:
        tell_small_rollout(ahead.configs["ppo"])
    return ahead


@contextlib.contextmanager
def _of_key(key: str) -> Iterator[None]:
    """What is said of a value, with the key that has it."""
    try:
        yield
    except (RecipeError, DataError) as error:
        raise type(error)(f"Recipe key {key!r}: {error}") from None


def check_rows(ahead: Ahead, splits: Splits) -> None:
    """Whether there are rows enough for every stage that is about to be made, of those that fit.

    Raises:
        DataError: naming the stage's rows, how many there are, and the remedy.
    """
    if "reward" in ahead.configs:
        _check_pairs(ahead, splits)
    method = ahead.recipe.method
    if method in OFFLINE and method in ahead.configs:
        _check_policy_replies(ahead, splits)
    elif method in ahead.configs:
        _check_prompts(ahead, splits)
    if "evaluate" in ahead.stages and method is not None:
        _check_evaluation_prompts(ahead, splits)


def _check_optimizer(stage: str, config: Any) -> None:
    """Make the optimizer and the schedule of a single number: some take packages or arguments of their own."""
    if any(name in _value(config.optim) for name in ("lomo", "galore", "apollo")):  # made for a model's own layers
        return
    number = torch.nn.Parameter(torch.zeros(1, device=processes().device))
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(config)
    except (ValueError, ImportError, RuntimeError) as error:
        raise RecipeError(f"Recipe key '{stage}.optim' is {_value(config.optim)!r}: {error}") from None
    try:
        optimizer = kind([number], **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(f"Recipe section '{stage}': the optimizer cannot be made: {error}") from None
    try:
        get_scheduler(
            config.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs or {}),
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"Recipe key '{stage}.lr_scheduler_type' is {_value(config.lr_scheduler_type)!r}: {error}; see "
            f"'{stage}.lr_scheduler_kwargs'."
        ) from None


def _value(choice: Any) -> Any:
    return getattr(choice, "value", choice)


def _check_functions(ahead: Ahead) -> None:
    """Import what the recipe names of the user's code, and ask whether it takes what it will be given."""
    recipe, method = ahead.recipe, scored_method(ahead.recipe)
    if method in ahead.configs:
        options = method_options(recipe)
        adapters = {} if recipe.reward is None else dict.fromkeys(stage_options(recipe, "reward").adapters)
        sources = ScoreSources(adapters, list(options.reward_funcs), weighing(recipe))
        try:
            sources.check_signatures(["prompt", "objective", THOUGHT])
        except ValueError as error:
            raise RecipeError(f"Recipe key '{method}.reward_funcs': {error}") from None
    if recipe.evaluate is not None and "evaluate" in ahead.stages:
        for i, suite in enumerate(recipe.evaluate.own):
            try:
                inspect.signature(suite_function(suite)).bind([], [])
            except TypeError as error:
                raise RecipeError(
                    f"Recipe key 'evaluate.own.{i}.function': {suite.function} cannot be called with prompts and "
                    f"replies ({error}); write it as def f(prompts, replies)."
                ) from None


def _check_hub(configs: dict[str, Any]) -> None:
    """A trainer that is to push begins by making a repository, or fails there."""
    pushing = [stage for stage, config in configs.items() if config.push_to_hub]
    if pushing:
        check_logged_in(
            f"Recipe key '{pushing[0]}.push_to_hub' is true:", "remove the key and upload the run's folder afterwards"
        )


def _check_base(ahead: Ahead) -> None:
    """It must be a causal language model that the recipe's sections can work with; fills in what is known of it."""
    recipe, base, configs = ahead.recipe, ahead.base, ahead.configs
    config = find_config(base, recipe.model, BASE)
    has_causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not has_causal and "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        raise RecipeError(f"{BASE} {str(base)!r} is of type {config.model_type}, which is no causal language model.")
    ahead.tokenizer = load_tokenizer(base, recipe.model)
    ahead.context = context = context_limit(recipe.model, config)
    lora = recipe.model.lora
    if isinstance(lora, str) or lora.target_modules != "all-linear":
        on_meta(recipe, config)
    if configs:
        check_compiles(recipe, config)
    if "ppo" in configs and configs["ppo"].use_vllm:
        check_vllm(recipe, configs["ppo"], config, ahead.tokenizer)
    if "reward" in configs:
        score_head_name(config, recipe.model.trusts_base)  # refuses an architecture that cannot score
    for stage, of_stage in configs.items():
        if of_stage.use_liger_kernel:
            check_liger(stage, of_stage, config, recipe.model.trusts_base)
    if (sampled := sampling(recipe)) and recipe.method in configs:
        _check_room(f"{recipe.method}.{length_key(recipe)}", sampled[0], context)
    if "ppo" in configs:
        try:
            if uses_fsdp():
                check_distribution(DistributedType.FSDP, configs["ppo"])
            if configs["ppo"].gradient_checkpointing and configs["ppo"].value == "adapter":
                checkpoint_with_adapters(copy.copy(configs["ppo"]))
        except ValueError as error:
            raise RecipeError(f"Recipe section 'ppo': {error}") from None
    if "evaluate" in ahead.stages and recipe.evaluate is not None and recipe.evaluate.response_length is not None:
        _check_room("evaluate.response_length", recipe.evaluate.response_length, context)


def _check_room(key: str, length: int, context: int) -> None:
    if length >= context:
        raise RecipeError(
            f"Recipe key {key!r} is {length}, but prompt and reply share the model's context of {context} tokens; "
            "lower it."
        )


def _check_reward_models(recipe: Recipe, base: str | Path) -> None:
    """Load every finished reward model once, by what the evaluation reads it with, and drop it."""
    named = stage_options(recipe, "reward").model
    key = "Recipe key 'reward.model':"
    if named is not None:
        check_there(named, key)
        with _told_of(key):
            folder = local_adapter(named, None)
            own = None if folder is None else base_of(folder)
        if folder is not None and own is not None:
            _check_same_base(recipe, named, own, base)
            _check_same_kind(recipe, named, folder)
    others = [name for name in method_options(recipe).reward_funcs if not FUNCTION.match(name)]
    for name in dict.fromkeys([*([] if named is None else [named]), *others]):
        said = key if name == named else f"Recipe key '{recipe.method}.reward_funcs':"
        check_there(name, said)
        with _told_of(said):
            RewardModel.from_pretrained(name, dtype=recipe.model.dtype, trust_remote_code=recipe.model.trusted)
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _told_of(key: str) -> Iterator[None]:
    """What loading a reward model raises as a RecipeError that names the key."""
    try:
        yield
    except (ValueError, OSError, SafetensorError) as error:
        raise RecipeError(f"{key} {error}") from None


def _check_same_base(recipe: Recipe, named: str, own: str | Path, base: str | Path) -> None:
    """An adapter means nothing on another base than its own, not even where its weights fit."""
    told = f"Recipe key 'reward.model': the adapter {named} was trained on {own}"
    if recipe.sft is not None:
        raise RecipeError(
            f"{told}, and PPO would start from what the recipe's 'sft' makes; leave 'sft' out with model.base: {own}, "
            "or name a reward model with a base of its own."
        )
    same_weights = Path(own).is_dir() and weight_digests(own) == weight_digests(base)
    if Path(own).resolve() != Path(base).resolve() and not same_weights:
        raise RecipeError(
            f"{told}, and PPO would start from {base}; set model.base to the adapter's, or name a reward model with a "
            "base of its own."
        )


def _check_same_kind(recipe: Recipe, named: str, folder: str | Path) -> None:
    """PEFT cannot hold LoRA and a copy of all weights on one base."""
    whole = is_whole(PeftConfig.from_pretrained(str(folder)))
    if whole == isinstance(recipe.model.lora, str):
        return
    kind, other = ("a copy of all weights", "LoRA") if whole else ("LoRA", "a copy of all weights")
    remedy = "model.lora: none" if whole else "a mapping in model.lora"
    raise RecipeError(
        f"Recipe key 'reward.model': the adapter {named} is {kind}, and by 'model.lora' the policy would be {other} on "
        f"the same base, which PEFT cannot hold; set {remedy}, or name a reward model with a base of its own."
    )


def _check_pairs(ahead: Ahead, splits: Splits) -> None:
    """As the reward stage will ask, of as many rows as it takes to know."""
    recipe, tokenizer, context = ahead.recipe, ahead.tokenizer, ahead.context
    limit = min(ahead.configs["reward"].max_length or 2**30, context)
    options = stage_options(recipe, "reward")
    for what in ("reward_pairs", "heldout_pairs", "evaluation_pairs"):
        rows, account = getattr(splits, what), Fitted(limit, what)
        if len(rows) and not how_many_fit(fit_preferences, tokenizer, rows, account, 1):
            raise DataError(none_fits(account))
    plan_adapters(options, list(splits.reward_pairs), recipe.seed)
    if options.reference_samples:
        room = context - options.reference_length
        account = Fitted(room, "reference prompts")
        prompts = (Prompt(pair.prompt, pair.objective, pair.origin) for pair in splits.reward_pairs)
        if room <= 0 or how_many_fit(fit_prompts, tokenizer, prompts, account, 2) < 2:
            raise DataError(nowhere_to_reply(options.reference_length, account))


def _check_policy_replies(ahead: Ahead, splits: Splits) -> None:
    """As DPO or KTO will ask: more than a batch of one, and of rated replies both kinds."""
    method, config = str(ahead.recipe.method), ahead.configs[str(ahead.recipe.method)]
    account = Fitted(min(config.max_length or 2**30, ahead.context), "pairs")
    fit = functools.partial(fit_preferences, encode=encode_whole_replies)
    found = how_many_fit(fit, ahead.tokenizer, splits.reward_pairs, account, 2)
    if splits.ratings:
        accounts = [account, *(Fitted(account.limit, "ratings") for _ in range(2))]
        good, bad = (
            found
            + how_many_fit(fit_ratings, ahead.tokenizer, (r for r in splits.ratings if r.good == kind), of_kind, 1)
            for kind, of_kind in zip((True, False), accounts[1:], strict=True)
        )
        if not good + bad:
            raise DataError(nothing_fits(method, accounts))
        if not (good and bad):
            raise DataError(one_sided(good=bool(good)))
        return
    if not found:
        raise DataError(nothing_fits(method, [account]))
    if found < 2:
        raise DataError(f"There is one pair for {method} that fits; add sources to 'data.preferences'.")


def _check_prompts(ahead: Ahead, splits: Splits) -> None:
    """One rollout at least, beside the prompts that are kept back; and a demonstration where some are mixed in."""
    recipe, method = ahead.recipe, str(ahead.recipe.method)
    tokenizer, context, config = ahead.tokenizer, ahead.context, ahead.configs[method]
    eval_prompts, response_length = method_options(recipe).eval_prompts, (sampling(recipe) or (0, 1.0))[0]
    rollout = 2 if method == "best_of_n" else config.generation_batch_size // config.num_generations
    needed = max(rollout, 10 if eval_prompts else 0)
    while needed - number_kept_back(needed, eval_prompts) < rollout:
        needed += 1
    account = Fitted(context - response_length, "prompts")
    found = how_many_fit(fit_prompts, tokenizer, splits.prompts, account, needed)
    if not found:
        raise DataError(no_room(recipe, account))
    kept = number_kept_back(found, eval_prompts)
    if found - kept < rollout:
        raise DataError(
            f"There are {found} prompts for {METHODS[method]} that leave room for a reply{_kept(method, kept)}, but "
            f"{_needs(method, rollout)}, or add sources to 'data.prompts'.{account.objection}"
        )
    if method != "ppo":
        return
    if config.eval_strategy != "no" and not kept:
        raise DataError(
            f"Recipe key 'ppo.eval_prompts' is {eval_prompts}, but of {found} prompts none can be kept back (a tenth "
            "at most); set it to 0, or add sources to 'data.prompts'."
        )
    account = Fitted(context, "ptx demonstrations")
    if config.ptx_coef and not how_many_fit(fit_demonstrations, tokenizer, splits.demonstrations, account, 1):
        raise DataError(nothing_to_imitate(account))


def _check_evaluation_prompts(ahead: Ahead, splits: Splits) -> None:
    recipe = ahead.recipe
    assert recipe.evaluate is not None
    length = recipe.evaluate.response_length or (sampling(recipe) or UNTRAINED)[0]
    account = Fitted(ahead.context - length, "evaluation prompts")
    if not how_many_fit(fit_prompts, ahead.tokenizer, splits.evaluation_prompts, account, 1):
        raise DataError(
            f"None of {len(splits.evaluation_prompts)} evaluation prompts leaves room for a reply of {length} tokens; "
            f"lower evaluate.response_length, or give shorter ones.{account.objection}"
        )


def _needs(method: str, prompts: int) -> str:
    """How many prompts a method takes at once, and what makes them fewer."""
    if method == "best_of_n":
        return f"training takes {prompts}; lower best_of_n.eval_prompts"
    sizes = {"ppo": "gradient_accumulation_steps or num_mini_batches"}
    lower = sizes.get(method, "gradient_accumulation_steps or steps_per_generation, or raise num_generations")
    return f"one rollout takes {prompts}; lower {method}.per_device_train_batch_size, {lower}"


def _kept(method: str, count: int) -> str:
    return f", {count} of them kept back ({method}.eval_prompts)" if count else ""
