"""What a recipe may say of the method that makes its policy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_rlhf.errors import RecipeError
from llm_rlhf.pipeline import stage_inputs
from llm_rlhf.recipe.loading import load_recipe, sampling, trainer_config
from llm_rlhf.recipe.sections import METHODS, scored_method

RECIPES = Path(__file__).parents[2] / "recipes"


def load(folder: Path, **sections: Any) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "world": {}, "sft": {}, **sections}))
    return load_recipe(path)


def test_two_methods_are_one_error(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"'ppo' and 'dpo' each make a policy of the same start.*llm-rlhf compare"):
        load(tmp_path, reward={}, ppo={}, dpo={})


@pytest.mark.parametrize("method", ["grpo", "rloo", "best_of_n"])
def test_a_method_that_is_paid_by_scores_needs_something_that_scores(tmp_path, method) -> None:
    with pytest.raises(RecipeError, match=f"section '{method}' needs a reward model.*'{method}.reward_funcs'"):
        load(tmp_path, **{method: {}})
    assert load(tmp_path, **{method: {"reward_funcs": ["here:there"]}}).method == method


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_pairs_alone_are_enough_for_the_others_and_then_none_is_held_out(tmp_path, method) -> None:
    recipe = load(tmp_path, **{method: {}}, evaluate={})
    assert recipe.method == method
    assert scored_method(recipe) is None
    own = {"world": None, "model": {"base": "here"}, "data": {"preferences": [{"source": "here.jsonl"}]}}
    assert load(tmp_path, **own, **{method: {}}).data.heldout_share == 0
    assert load(tmp_path, **own, **{method: {}}, reward={}).data.heldout_share == 0.5
    with pytest.raises(RecipeError, match=f"'data.preferences' is empty; '{method}' learns from pairs"):
        load(tmp_path, **own | {"data": {"prompts": [{"source": "here.jsonl"}]}}, **{method: {}})


def test_a_step_of_the_optimizer_never_ends_within_a_rollout(tmp_path) -> None:
    """Two micro-batches a rollout: one, two, four or six may be a step, three may not."""
    for accumulated in (1, 2, 4, 6):
        load(tmp_path, reward={}, grpo={"steps_per_generation": 2, "gradient_accumulation_steps": accumulated})
    with pytest.raises(RecipeError, match=r"'rloo' contradicts itself: a rollout is .* = 2 micro-batches.* is 3; one"):
        load(tmp_path, reward={}, rloo={"steps_per_generation": 2, "gradient_accumulation_steps": 3})


def test_each_section_takes_its_trainers_fields_and_its_own_by_name_and_type(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"'grpo.num_generation'.*num_generations"):
        load(tmp_path, reward={}, grpo={"num_generation": 4})
    with pytest.raises(RecipeError, match=r"'dpo.beta' is 'much'"):
        load(tmp_path, dpo={"beta": "much"})
    with pytest.raises(RecipeError, match=r"'dpo.reward_funcs'"):
        load(tmp_path, dpo={"reward_funcs": ["here:there"]})
    with pytest.raises(RecipeError, match=r"'rloo.reward_weights' has 3 numbers; it needs one for each of joint,"):
        load(tmp_path, reward={}, rloo={"reward_weights": [1, 2, 3]})
    with pytest.raises(RecipeError, match=r"'best_of_n.n' is 1; it must be at least 2"):
        load(tmp_path, reward={}, best_of_n={"n": 1})
    with pytest.raises(RecipeError, match=r"'grpo.use_vllm' is True, but only PPO samples by vLLM here"):
        load(tmp_path, reward={}, grpo={"use_vllm": True})
    with pytest.raises(RecipeError, match=r"'kto.eval_strategy' is 'steps', but this stage keeps no rows back"):
        load(tmp_path, kto={"eval_strategy": "steps"})
    with pytest.raises(RecipeError, match=r"'rloo' contradicts itself: total_episodes and max_steps both say"):
        load(tmp_path, reward={}, rloo={"total_episodes": 64, "max_steps": 3, "per_device_train_batch_size": 8})


def test_total_episodes_are_steps_by_hand(tmp_path) -> None:
    """Rollouts of 16 replies: 40 take three. Each is two micro-batches read twice; one optimizer step takes one."""
    section = {"total_episodes": 40, "per_device_train_batch_size": 8, "steps_per_generation": 2, "num_iterations": 2,
               "num_generations": 4}  # fmt: skip
    for method in ("grpo", "rloo"):
        config = trainer_config(load(tmp_path, reward={}, **{method: section}), method, tmp_path)
        assert (config.max_steps, config.logging_steps) == (12, 4)
        config = trainer_config(
            load(tmp_path, reward={}, **{method: section | {"gradient_accumulation_steps": 4}}), method, tmp_path
        )
        assert (config.max_steps, config.logging_steps) == (3, 1)


def test_evaluation_samples_as_training_did(tmp_path) -> None:
    grpo = load(tmp_path, reward={}, grpo={"max_completion_length": 33, "temperature": 0.8})
    assert sampling(grpo) == (33, 0.8)
    assert sampling(load(tmp_path, reward={}, best_of_n={"response_length": 34, "temperature": 0.9})) == (34, 0.9)
    assert sampling(load(tmp_path, reward={}, ppo={"response_length": 35, "temperature": 0.7})) == (35, 0.7)
    assert sampling(load(tmp_path, reward={}, dpo={})) is None


def test_a_recipe_of_ppo_leaves_no_trace_of_the_other_methods(tmp_path) -> None:
    """So that run folders of before mean what they meant, and their manifests compare."""
    known = load(tmp_path, reward={}, ppo={}).as_dict()
    assert list(known) == [
        "name", "output_dir", "seed", "model", "data", "world", "sft", "reward", "ppo", "evaluate", "report_to", "gate",
    ]  # fmt: skip
    assert load(tmp_path).as_dict().keys() == known.keys()
    recipe = load(tmp_path, reward={}, grpo={"max_steps": 3})
    assert recipe.as_dict()["grpo"] == {"max_steps": 3}
    assert stage_inputs(recipe, "grpo").keys() - {"grpo"} == stage_inputs(recipe, "reward").keys()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ppo"])
def test_the_recipes_of_the_gold_world_differ_from_the_quickstart_by_their_method_alone(method) -> None:
    recipe, quickstart = load_recipe(RECIPES / "methods" / f"{method}.yaml"), load_recipe(RECIPES / "quickstart.yaml")
    assert recipe.method == method
    shared = ("seed", "model", "world", "sft", "reward")
    assert {key: recipe.as_dict()[key] for key in shared} == {key: quickstart.as_dict()[key] for key in shared}
    replies = [of.evaluate.response_length or sampling(of)[0] for of in (recipe, quickstart)]
    assert replies == [32, 32]  # gains do not compare where replies are cut at other lengths
    recipe.evaluate.response_length = None
    assert recipe.as_dict()["evaluate"] == quickstart.as_dict()["evaluate"]
