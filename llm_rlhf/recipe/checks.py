"""What the sections of a recipe may hold, each by itself and together; a RecipeError names the key and the remedy."""

import math
import re
from collections.abc import Collection
from pathlib import Path

from llm_rlhf.errors import RecipeError
from llm_rlhf.recipe.limits import at_least, check_share, check_weight
from llm_rlhf.recipe.rounds_checks import check_rounds, imitates
from llm_rlhf.recipe.sections import (
    GATE_CHECKS,
    METHODS,
    MOST_ENTITIES,
    OFFLINE,
    REWARD_CHECKS,
    SOURCE_LISTS,
    DataSection,
    GateSection,
    LoraSection,
    OwnSuite,
    Recipe,
    Source,
    WorldSection,
    method_options,
    scored_method,
    stage_options,
    trains_reward,
)
from llm_rlhf.recipe.values import nearest, unknown_choice, unknown_key
from llm_rlhf.user_code import FUNCTION


def check_together(recipe: Recipe) -> None:
    """Sections that need or exclude each other."""
    if recipe.world is not None:
        if recipe.model.base is not None or recipe.data is not None:
            key = "model.base" if recipe.model.base is not None else "data"
            raise RecipeError(f"Recipe key {key!r} is set, but 'world' makes the base model and the data; remove one.")
        learns_from_pairs = trains_reward(recipe) or recipe.method in OFFLINE
        _check_world(recipe.world, of_pairs=learns_from_pairs and not imitates(recipe))
    else:
        if recipe.model.base is None:
            raise RecipeError("Recipe key 'model.base' is missing; give a hub id or a folder, or a 'world' section.")
        if recipe.data is None and recipe.feedback is None:
            raise RecipeError("Recipe section 'data' is missing; name the sources, or use a 'world' section.")
        recipe.data = recipe.data or DataSection()
        _check_data(recipe)
    if recipe.feedback is not None:
        check_weight("feedback.weight", recipe.feedback.weight)
    method = recipe.method
    if len(several := [name for name in METHODS if getattr(recipe, name) is not None]) > 1:
        raise RecipeError(
            f"Recipe sections {' and '.join(map(repr, several))} each make a policy of the same start, and a run has "
            "one; keep one of them here, and give every other a recipe of its own (`llm-rlhf compare` takes several)."
        )
    if (scored := scored_method(recipe)) and recipe.reward is None and not method_options(recipe).reward_funcs:
        raise RecipeError(
            f"Recipe section '{scored}' needs a reward model; add a 'reward' section (reward.model names a finished "
            f"one), or name functions in '{scored}.reward_funcs'."
        )
    if recipe.evaluate is not None and recipe.reward is None and method is None:
        raise RecipeError("Recipe section 'evaluate' has nothing to judge; add a 'reward' section, and 'ppo' for more.")
    has_heldout = recipe.data is None or recipe.data.heldout_share > 0
    if recipe.evaluate is not None and method is not None and trains_reward(recipe) and not has_heldout:
        raise RecipeError(
            "Recipe key 'data.heldout_share' is 0, but 'evaluate' asks a held-out reward model; give it pairs."
        )
    lora = recipe.model.lora if isinstance(recipe.model.lora, LoraSection) else None
    if lora is None and recipe.model.quantization != "none":
        raise RecipeError(
            f"Recipe key 'model.lora' is 'none', so that all weights train, but 'model.quantization' is "
            f"{recipe.model.quantization!r}, whose weights cannot; remove one of the two keys."
        )
    for key, value, low in (
        ("model.lora.r", lora.r if lora else None, 1),
        ("model.lora.alpha", lora.alpha if lora else None, 1),
        ("model.context_length", recipe.model.context_length, 8),
    ):
        at_least(key, value, low)
    if recipe.evaluate is not None:
        for name in ("prompts", "batch_size", "response_length", "refusal_prompts"):
            at_least(f"evaluate.{name}", getattr(recipe.evaluate, name), 1)
        at_least("evaluate.resamples", recipe.evaluate.resamples, 100)  # fewer cannot place a 2.5 % point
        at_least("evaluate.snapshot_prompts", recipe.evaluate.snapshot_prompts, 0)
        at_least("evaluate.perplexity_rows", recipe.evaluate.perplexity_rows, 0)
        at_least("evaluate.best_of_n", recipe.evaluate.best_of_n, 0)
        check_own_suites(recipe.evaluate.own)
        for i, benchmark in enumerate(recipe.evaluate.benchmarks):
            at_least(f"evaluate.benchmarks.{i}.limit", benchmark.limit, 1)
        for name in ("own", "hhh", "benchmarks", "judge", "reference"):
            if getattr(recipe.evaluate, name) and method is None:
                raise RecipeError(
                    f"Recipe key 'evaluate.{name}' asks policies, but there is no 'ppo' or other method; remove the "
                    "key."
                )
        if recipe.evaluate.pairs and method is None:
            raise RecipeError(
                "Recipe key 'evaluate.pairs' tests reward models beside a policy, but there is no 'ppo'; without one "
                "they are tested on 'data.evaluation_preferences'."
            )
        for name in ("hhh", "pairs"):
            for i, source in enumerate(getattr(recipe.evaluate, name)):
                _check_evaluated(source, f"evaluate.{name}.{i}")
        if recipe.evaluate.temperature is not None and recipe.evaluate.temperature <= 0:
            raise RecipeError(f"Recipe key 'evaluate.temperature' is {recipe.evaluate.temperature}; it must be over 0.")
    check_gate_section(recipe.gate)
    if recipe.rounds is not None:
        check_rounds(recipe, recipe.rounds)
    template = recipe.model.chat_template
    if template is not None and not Path(template).is_file():
        raise RecipeError(f"Recipe key 'model.chat_template' is {template!r}; there is no such file.")


def check_gate_section(gate: GateSection) -> None:
    """RecipeError where a threshold can hold nothing, or what is required is no check."""
    for name in ("margin", "refusal_drop", "over_refusal_rise", "kl"):
        value = getattr(gate, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise RecipeError(f"Recipe key 'gate.{name}' is {value}; it must be 0 or more, or null to ask nothing.")
    if gate.perplexity_rise is not None and not gate.perplexity_rise >= 1:
        raise RecipeError(
            f"Recipe key 'gate.perplexity_rise' is {gate.perplexity_rise}; it is how many times the start's perplexity "
            "is allowed, 1 or more."
        )
    for name in gate.required:
        if name not in GATE_CHECKS:
            raise RecipeError(unknown_choice("gate.required", name, list(GATE_CHECKS)))


def check_reward(recipe: Recipe) -> None:
    """What the reward section asks for, and what PPO makes of several adapters. Types were checked before."""
    assert recipe.reward is not None
    options = stage_options(recipe, "reward")
    if options.model is not None:
        if others := sorted(recipe.reward.keys() - {"model"}):
            raise RecipeError(
                f"Recipe key 'reward.{others[0]}' is set, but 'reward.model' ({options.model}) is finished, and "
                "nothing is trained; remove one."
            )
        if recipe.method is None:
            raise RecipeError(
                f"Recipe key 'reward.model' ({options.model}) is there to train a policy against, but there is no "
                "'ppo'; to look at the model itself: llm-rlhf evaluate --reward MODEL --pairs SOURCE."
            )
    at_least("reward.reference_samples", options.reference_samples, 0)
    at_least("reward.ensemble", options.ensemble, 1)
    if not 0 <= options.label_smoothing < 0.5:
        raise RecipeError(
            f"Recipe key 'reward.label_smoothing' is {options.label_smoothing}; it is the share of wrong labels and "
            "must be at least 0 and under 0.5."
        )
    if recipe.reward.get("label_smoothing_factor"):
        raise RecipeError(
            "Recipe key 'reward.label_smoothing_factor' does nothing to a reward model; set 'reward.label_smoothing'."
        )
    if options.objectives == "separate" and options.ensemble > 1:
        raise RecipeError(
            f"Recipe key 'reward.ensemble' is {options.ensemble} and 'reward.objectives' is 'separate'; an ensemble is "
            "of one objective, or joint. Change one of them."
        )
    _check_gates(options.gates)


def _check_gates(gates: str | bool | dict[str, str | bool]) -> None:
    named = gates if isinstance(gates, dict) else {"": gates}
    for check, gate in named.items():
        key = f"reward.gates.{check}" if check else "reward.gates"
        if check and check not in REWARD_CHECKS:
            raise RecipeError(unknown_key("reward.gates.", check, gate, list(REWARD_CHECKS)))
        if gate is not False and gate not in ("warn", "stop", "off"):
            near = nearest(gate, ["warn", "stop", "off"]) if isinstance(gate, str) else ""
            raise RecipeError(f"Recipe key {key!r} is {gate!r}; it must be one of 'warn', 'stop', 'off'.{near}")


def check_scores(recipe: Recipe) -> None:
    """What pays the method: one weight for each reward model, then for each of its `reward_funcs`."""
    method = recipe.method
    assert method is not None
    weights = (getattr(recipe, method) or {}).get("reward_weights")
    options, of_method = stage_options(recipe, "reward"), method_options(recipe)
    models = [] if recipe.reward is None else options.adapters if options.model is None else [options.model]
    sources = [*models, *of_method.reward_funcs]
    if weights is not None and len(weights) != len(sources):
        raise RecipeError(
            f"Recipe key '{method}.reward_weights' has {len(weights)} numbers; it needs one for each of "
            f"{', '.join(sources)}, in this order."
        )
    at_least(f"{method}.eval_prompts", of_method.eval_prompts, 0)
    if method == "ppo":  # PPOConfig checks the rest itself
        return
    if weights is not None and of_method.score_combination != "weighted":
        raise RecipeError(
            f"Recipe key '{method}.reward_weights' is set, but '{method}.score_combination' is "
            f"{of_method.score_combination!r}, which takes the scores as they are; remove one."
        )
    for name in ("score_spread_coef", "missing_eos_penalty"):
        at_least(f"{method}.{name}", getattr(of_method, name), 0)
    lows = {"total_episodes": 1, "n": 2, "prompts": 1, "response_length": 1, "sampling_batch_size": 1}
    for name, low in lows.items():
        at_least(f"{method}.{name}", getattr(of_method, name, None), low)
    if (temperature := getattr(of_method, "temperature", 1.0)) <= 0:
        raise RecipeError(f"Recipe key '{method}.temperature' is {temperature}; it must be over 0.")


def _check_world(world: WorldSection, of_pairs: bool) -> None:
    if not 2 <= world.entities <= MOST_ENTITIES:
        raise RecipeError(
            f"Recipe key 'world.entities' is {world.entities}; the valley has 2 to {MOST_ENTITIES} animals."
        )
    for name in ("demonstrations", "preferences", "prompts", "evaluation_prompts"):
        at_least(f"world.{name}", getattr(world, name), 1 if name != "preferences" or of_pairs else 0)
    check_share("world.good_share", world.good_share, most=1)
    check_share("world.label_noise", world.label_noise)


def _check_data(recipe: Recipe) -> None:
    data = recipe.data
    assert data is not None
    if data.evaluation_share is not None:
        check_share("data.evaluation_share", data.evaluation_share)
    check_share("data.heldout_share", data.heldout_share)
    if data.near_duplicates is not None and not 0 < data.near_duplicates <= 1:
        raise RecipeError(f"Recipe key 'data.near_duplicates' is {data.near_duplicates}; it must be over 0, at most 1.")
    if trains_reward(recipe) and not data.preferences and recipe.feedback is None and not imitates(recipe):
        raise RecipeError("Recipe key 'data.preferences' is empty; the reward model needs at least one source.")
    if recipe.method in OFFLINE:
        if not (data.preferences or data.ratings or recipe.feedback or imitates(recipe)):
            more = ", or name single rated replies in 'data.ratings'" if recipe.method == "kto" else ""
            raise RecipeError(f"Recipe key 'data.preferences' is empty; '{recipe.method}' learns from pairs{more}.")
        if not trains_reward(recipe):
            data.heldout_share = 0.0  # no held-out model is trained: the policy learns from its pairs too
    if data.ratings and recipe.method != "kto":
        raise RecipeError(
            "Recipe key 'data.ratings' names single rated replies, from which 'kto' alone learns here; remove it, or "
            "name its sources in 'data.preferences' (a prompt with a good and a bad reply makes a pair)."
        )
    _leave_out_unused(recipe, data)
    for name in SOURCE_LISTS:
        for i, source in enumerate(getattr(data, name)):
            _check_source(recipe, name, source, f"data.{name}.{i}")


def _leave_out_unused(recipe: Recipe, data: DataSection) -> None:
    """Without pairs, lists that no stage reads take no rows of them, as their defaults say."""
    needed = {
        "demonstrations": recipe.sft is not None or bool((recipe.ppo or {}).get("ptx_coef")),
        "prompts": scored_method(recipe) is not None,
        "evaluation_prompts": recipe.method is not None and recipe.evaluate is not None,
    }
    for name, is_needed in needed.items():
        if not (data.preferences or recipe.feedback or is_needed):
            setattr(data, name, [source for source in getattr(data, name) if source.from_ is None])


def check_own_suites(suites: list[OwnSuite], key: str | None = "evaluate.own", taken: Collection[str] = ()) -> None:
    """RecipeError where a suite's name is taken, its function is not spelled as one, or it has no prompts.

    Args:
        key: where they stand in the recipe; None: on the command line.
        taken: names that the report's own measures have.
    """

    def of(i: int, name: str) -> str:
        return f"Recipe key '{key}.{i}.{name}'" if key else f"--own {suites[i].name}: the {name}"

    for i, suite in enumerate(suites):
        if not re.fullmatch(r"[A-Za-z]\w*", suite.name) or suite.name.endswith(("_gain", "_change")):
            raise RecipeError(
                f"{of(i, 'name')} is {suite.name!r}; it must be of letters, digits and underscores, begin "
                "with a letter and not end in _gain or _change."
            )
        if suite.name in taken or suite.name in [other.name for other in suites[:i]]:
            whose = "a measure of the report's own" if suite.name in taken else "another suite"
            raise RecipeError(f"{of(i, 'name')} is {suite.name!r}, as is {whose}; give it another name.")
        if not FUNCTION.match(suite.function):
            raise RecipeError(
                f"{of(i, 'function')} is {suite.function!r}; write it as module:function, such as "
                "my_suites:brevity for the function brevity in my_suites.py."
            )
        if not suite.prompts:
            raise RecipeError(f"{of(i, 'prompts')} is empty; name a source of prompts.")
        for j, source in enumerate(suite.prompts):
            _check_evaluated(source, f"{key}.{i}.prompts.{j}")


def _check_evaluated(source: Source, key: str) -> None:
    """A source of `evaluate`, which stands by itself: nothing in `data` is reused, and nothing is trained on."""
    if source.source is None or source.from_ is not None:
        raise RecipeError(f"Recipe key '{key}' must have a 'source' (a file, a folder or a hub id), and no 'from'.")
    at_least(f"{key}.limit", source.limit, 1)
    check_columns(source, f"{key}.columns.")
    if source.weight != 1:
        raise RecipeError(f"Recipe key '{key}.weight' is {source.weight}, but weights are for training; use 'limit'.")


def _check_source(recipe: Recipe, name: str, source: Source, key: str) -> None:
    data = recipe.data
    assert data is not None
    if (source.source is None) == (source.from_ is None):
        raise RecipeError(f"Recipe key '{key}' must have exactly one of 'source' and 'from'.")
    if source.from_ is not None and name.endswith("preferences"):
        raise RecipeError(f"Recipe key '{key}.from' is 'preferences'; preferences need a 'source'.")
    if source.from_ is not None and name == "ratings":
        raise RecipeError(f"Recipe key '{key}.from' is 'preferences', both replies of which 'kto' learns from anyway.")
    pairs = [*data.preferences, *(data.evaluation_preferences if name == "evaluation_prompts" else [])]
    if source.from_ is not None and not pairs and recipe.feedback is None:
        raise RecipeError(f"Recipe key '{key}' takes rows from 'data.preferences', which is empty; add a source.")
    at_least(f"{key}.limit", source.limit, 1)
    check_weight(f"{key}.weight", source.weight, least=name == "preferences")
    if source.leaks is not None and name.startswith("evaluation"):
        raise RecipeError(f"Recipe key '{key}.leaks' is {source.leaks!r}, but nothing trains on its rows; remove it.")
    if source.weight != 1 and name.startswith("evaluation"):
        raise RecipeError(f"Recipe key '{key}.weight' is {source.weight}, but weights are for training; use 'limit'.")
    if source.balance_positions and not name.endswith("preferences"):
        raise RecipeError(f"Recipe key '{key}.balance_positions' is true, but only pairs have positions; remove it.")
    if source.imitate is not None and name != "preferences":
        raise RecipeError(f"Recipe key '{key}.imitate' is {source.imitate}, which is for 'data.preferences'.")
    if source.labels is not None and (len(source.labels) != 2 or source.labels[0] == source.labels[1]):
        raise RecipeError(
            f"Recipe key '{key}.labels' is {source.labels}; it must be two different values: the label's where the "
            "first reply is better, and where the second is."
        )
    check_columns(source, f"{key}.columns.")


def check_columns(source: Source, key: str) -> None:
    """RecipeError where `columns` has a name that is none of ours."""
    for ours in source.columns:
        if ours not in COLUMNS:
            raise RecipeError(unknown_key(key, ours, source.columns[ours], list(COLUMNS)))


# The columns a source may name otherwise, by our names.
COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "response_1",
    "response_2",
    "label",
    "responses",
    "score",
    "rank",
    "text",
    "messages",
    "completion",
    "instruction",
    "input",
    "output",
    "objective",
    "margin",
    "confidence",
    "facts",
    "system",
    "history",
)
