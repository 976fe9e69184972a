"""Recipes: overrides, types, unknown keys and contradictions, all before anything is loaded."""

import re
from pathlib import Path

import pytest
import yaml

from llm_rlhf.errors import RecipeError
from llm_rlhf.pipeline import inputs_as_today, stage_inputs
from llm_rlhf.ppo.scores import training_reward
from llm_rlhf.recipe.loading import DECIDED_ELSEWHERE, load_recipe, trainer_config
from llm_rlhf.recipe.sections import stage_options
from llm_rlhf.reward.adapters import reward_folders, whole_rewards

GOOD = {
    "name": "tiny",
    "model": {"base": "some/model"},
    "data": {"preferences": [{"source": "pairs.jsonl", "objective": "harmless"}]},
    "sft": {"learning_rate": 1e-4},
    "reward": {},
    "ppo": {"kl_coef": 0.1, "total_episodes": 64},
    "evaluate": {},
}


@pytest.fixture
def recipe(tmp_path: Path):
    def write(text: str | dict | None = None, *overrides: str):
        path = tmp_path / "recipe.yaml"
        text = GOOD if text is None else text
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
        return load_recipe(path, overrides)

    return write


def test_defaults_and_values_meet(recipe) -> None:
    found = recipe()
    assert found.folder == Path("runs/tiny")
    assert found.model.lora.r == 16
    assert (found.data.evaluation_share, found.data.share_for_evaluation) == (None, 0.1)
    assert found.data.prompts[0].from_ == "preferences"
    assert yaml.safe_load(yaml.safe_dump(found.as_dict()))["data"]["prompts"] == [
        {"source": None, "from": "preferences", "format": "auto", "columns": {}, "labels": None, "pairs": "best_worst",
         "balance_positions": False, "objective": "overall", "split": "train", "data_dir": None, "subset": None,
         "limit": None, "weight": 1.0}
    ]  # fmt: skip


def test_the_resolved_recipe_is_a_recipe_and_means_the_same(recipe) -> None:
    found = recipe()
    assert recipe(found.as_dict()) == found


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=3", lambda r: r.seed == 3),
        ("ppo.learning_rate=1e-5", lambda r: r.ppo["learning_rate"] == 1e-5),  # YAML 1.1 reads this as text
        ("model.lora.target_modules=[q_proj, v_proj]", lambda r: r.model.lora.target_modules == ["q_proj", "v_proj"]),
        ("data.preferences.0.source=other.jsonl", lambda r: r.data.preferences[0].source == "other.jsonl"),
        ("data.preferences={source: x.jsonl}", lambda r: r.data.preferences[0].source == "x.jsonl"),
        ("sft=null", lambda r: r.sft is None),
        ("evaluate.prompts=7", lambda r: r.evaluate.prompts == 7),
        ("model.chat_template=null", lambda r: r.model.chat_template is None),
    ],
)
def test_overrides_are_laid_over(recipe, override, read) -> None:
    assert read(recipe(None, override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.kl_coeff=1", r"'ppo.kl_coeff' .*unknown.*Did you mean 'ppo.kl_coef'"),
        ("modell.base=x", r"'modell'.*unknown.*Did you mean 'model'"),
        ("model.lora.rank=4", r"'model.lora.rank'.*unknown"),
        ("run.seed=1", r"'run' .*unknown.*Did you mean 'seed'"),
        ("modell.seed=1", r"'modell'.*unknown.*Did you mean 'model'"),
        ("sft.learning_rat=1", r"Did you mean 'sft.learning_rate'"),
        ("ppo.kl_coef=high", r"'ppo.kl_coef' is 'high' \(str\); it must be of type float"),
        ("seed=1.5", r"'seed' is 1.5 \(float\); it must be of type int"),
        ("seed=true", r"'seed' is True \(bool\); it must be of type int"),
        ("model.dtype=float3", r"'model.dtype' is 'float3'; it must be one of .*Did you mean 'float32'"),
        ("model.quantization=4bit", r"must be one of 'none', 'nf4', 'int8'"),
        ("model=3", r"'model' is 3; it must be a mapping"),
        ("data.preferences=3", r"'data.preferences' is 3; it must be a list"),
        ("data.preferences.4.source=x", r"'4' must be a number from 0 to 0"),
        ("data.preferences.0.from=preferences", r"exactly one of 'source' and 'from'"),
        ("data.prompts={from: preferences, source: x}", r"exactly one of 'source' and 'from'"),
        ("data.prompts={limit: 4}", r"exactly one of 'source' and 'from'"),
        ("data.evaluation_share=1.5", r"'data.evaluation_share' is 1.5; it is a share"),
        ("data.near_duplicates=2", r"'data.near_duplicates' is 2"),
        ("data.leaks=ignore", r"'data.leaks' is 'ignore'; it must be one of"),
        ("data.preferences.0.weight=-0.5", r"must be at least 0 and at most 100"),
        ("data.demonstrations=[{source: a.jsonl, weight: 0}]", r"demonstrations.0.weight' is 0.0; it must be over 0"),
        ("data.evaluation_prompts={from: preferences, weight: 2}", r"weights are for training; use 'limit'"),
        ("data.evaluation_preferences={from: preferences}", r"preferences need a 'source'"),
        ("data.prompts={source: x, balance_positions: true}", r"only pairs have positions"),
        ("data.preferences.0.labels=[1, 1]", r"two different values"),
        ("data.preferences.0.columns={promt: question}", r"columns.promt' .*Did you mean .*columns.prompt'"),
        ("model.base=null", r"'model.base' is missing"),
        ("model.lora=null", r"'model.lora' is empty; leave it out .* r, alpha"),
        ("ppo.report_to=nonsense", r"'ppo.report_to' is 'nonsense', which is not known"),
        ("data=null", r"'data' is missing"),
        ("world={}", r"'model.base' is set, but 'world' makes"),
        ("reward=null", r"'ppo' needs a reward model"),
        ("reward.objectives=both", r"'reward.objectives' is 'both'; it must be one of 'joint', 'separate'"),
        ("reward.ensemble=0", r"'reward.ensemble' is 0; it must be at least 1"),
        ("data.demonstrations=[{from: preferences, imitate: false}]", r"0.imitate' is False, which is for"),
        ("ppo.kl_estimator=k3", r"kl_estimator is 'k3', which .* does not regularise when it is paid as a reward"),
        ("reward.gates=stopp", r"'reward.gates' is 'stopp'; it must be one of 'warn', 'stop', .*Did you mean 'stop'"),
        ("reward.gates=on", r"'reward.gates' is True; it must be one of 'warn', 'stop', 'off'"),
        ("reward.gates=3", r"'reward.gates' is 3 \(int\); it must be of type"),
        ("reward.gates.beat_rules=stop", r"'reward.gates.beat_rules' .*Did you mean 'reward.gates.beats_rules'"),
        ("reward.gates.beats_rules=halt", r"'reward.gates.beats_rules' is 'halt'; it must be one of"),
        ("reward.label_smoothing=0.5", r"'reward.label_smoothing' is 0.5; .* under 0.5"),
        ("reward.label_smoothing_factor=0.1", r"set 'reward.label_smoothing'"),
        ("reward={objectives: separate, ensemble: 2}", r"an ensemble is of one objective, or joint"),
        ("ppo.reward_weights=[1.0, 2.0]", r"'ppo.reward_weights' has 2 numbers; it needs one for each of joint"),
        ("data.heldout_share=0", r"'evaluate' asks a held-out reward model"),
        ("evaluate.resamples=99", r"'evaluate.resamples' is 99; it must be at least 100"),
        ("sft.output_dir=here", r"'sft.output_dir' is set to 'here', but the recipe's output_dir decides it"),
        ("reward.bf16=true", r"model.dtype decides it"),
        ("ppo.beta=0.2", r"kl_coef \(0.1\) and beta \(0.2\) are two names"),
        ("ppo.max_steps=5", r"total_episodes and max_steps both"),
        ("ppo.gamma=2", r"gamma is 2.0; it must be between 0 and 1"),
        ("ppo.value=none", r"'ppo.value' is 'none'; it must be one of 'shared', 'adapter'"),
        ("sft.eval_strategy=sometimes", r"'sft' contradicts itself"),
        ("model.chat_template=nowhere.jinja", r"there is no such file"),
        ("evaluate.prompts=0", r"'evaluate.prompts' is 0; it must be at least 1"),
        ("seed", r"'seed' is not of the form"),
        ("name.x=1", r"goes through 'name', which is 'tiny'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(recipe, override, message) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(None, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "'name' stands twice"),
        ("name: !!python/object/apply:os.getcwd []\n", "not plain YAML"),
        ("[1, 2]", "must be a mapping"),
        ("name: [", "not plain YAML"),
        ("model: {base: x}\n", "'name' is missing"),
    ],
)
def test_yaml_that_is_not_a_recipe(recipe, text, message) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(text)


def test_a_missing_recipe_names_its_neighbour(tmp_path) -> None:
    (tmp_path / "quickstart.yaml").write_text("name: x")
    with pytest.raises(RecipeError, match=r"no recipe at .*quickstar.yaml.*Did you mean 'quickstart.yaml'"):
        load_recipe(tmp_path / "quickstar.yaml")


def test_the_run_decides_folder_seed_and_type(recipe, tmp_path) -> None:
    config = trainer_config(recipe(None, "seed=5"), "sft", tmp_path)
    assert (config.output_dir, config.seed, config.bf16, config.learning_rate) == (str(tmp_path), 5, False, 1e-4)
    assert trainer_config(recipe(None, "model.dtype=bfloat16"), "ppo", tmp_path).bf16 is True


@pytest.mark.parametrize("key", ["sft.torch_compile=true", "reward.torch_compile_mode=max-autotune"])
def test_a_model_is_not_compiled_whole(recipe, key) -> None:
    with pytest.raises(RecipeError, match=r"torch_compile.*but model.compile, layer by layer, decides it"):
        recipe(None, key)


def test_what_is_decided_elsewhere_is_a_field_of_some_trainer() -> None:
    import dataclasses

    from trl import RewardConfig, SFTConfig

    from llm_rlhf.ppo.config import PPOConfig

    known = {f.name for c in (SFTConfig, RewardConfig, PPOConfig) for f in dataclasses.fields(c)}
    assert set(DECIDED_ELSEWHERE) <= known


@pytest.mark.parametrize(
    ("gates", "beats_rules", "leaves_plateau"),
    [
        (None, "warn", "warn"),
        ("stop", "stop", "stop"),
        ("off", "off", "off"),  # which YAML reads as false
        ("{beats_rules: stop}", "stop", "warn"),
        ("{leaves_plateau: off, beats_rules: warn}", "warn", "off"),
    ],
)
def test_gates_of_the_reward_model(recipe, gates, beats_rules, leaves_plateau) -> None:
    options = stage_options(recipe(None, *([f"reward.gates={gates}"] if gates else [])), "reward")
    assert (options.gate("beats_rules"), options.gate("leaves_plateau")) == (beats_rules, leaves_plateau)


def test_gates_alone_make_neither_the_reward_model_nor_the_policy_another(recipe) -> None:
    plain, gated = recipe(), recipe(None, "reward.gates=stop")
    for stage in ("reward", "ppo"):
        assert stage_inputs(plain, stage) == stage_inputs(gated, stage)
        assert stage_inputs(plain, stage) != stage_inputs(recipe(None, "reward.ensemble=2"), stage)
    assert stage_inputs(plain, "evaluate") != stage_inputs(gated, "evaluate")  # the report tells what is not off


def test_a_recipe_may_end_with_its_reward_model(recipe) -> None:
    assert recipe(None, "ppo=null").evaluate is not None
    assert recipe(None, "ppo=null", "data.heldout_share=0").data.heldout_share == 0
    with pytest.raises(RecipeError, match=r"'evaluate' has nothing to judge; add a 'reward' section"):
        recipe(None, "ppo=null", "reward=null")


def test_functions_alone_may_reward(recipe) -> None:
    read = recipe(None, "reward=null", "ppo.reward_funcs=['a:b', some/model]", "data.heldout_share=0")
    assert (reward_folders(read, None), whole_rewards(read)) == ({}, ["some/model"])
    assert "reward" not in stage_inputs(read, "ppo")
    with pytest.raises(RecipeError, match=r"'ppo.reward_weights' has 1 numbers; .* a:b, some/model, in this order"):
        recipe(None, "reward=null", "ppo={reward_funcs: ['a:b', some/model], reward_weights: [1.0]}")


def test_a_finished_reward_model_stands_for_one_that_is_trained(recipe, reward_folder, tmp_path) -> None:
    read = recipe(None, f"reward={{model: {reward_folder}}}", "data.heldout_share=0")
    assert (reward_folders(read, None), whole_rewards(read)) == ({"joint": reward_folder}, [])
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.json").write_text("{}")
    whole = str(tmp_path / "whole")
    read = recipe(None, f"reward={{model: {whole}}}", "ppo.reward_funcs=['a:b', some/model]")
    assert (reward_folders(read, None), whole_rewards(read)) == ({}, [whole])
    with pytest.raises(RecipeError, match=rf"needs one for each of {whole}, a:b, in this order"):
        recipe(None, f"reward={{model: {whole}}}", "ppo={reward_funcs: ['a:b'], reward_weights: [1.0]}")


def test_without_pairs_lists_that_no_stage_reads_need_no_source(recipe) -> None:
    data = "data={prompts: {source: p.jsonl}, evaluation_prompts: {source: e.jsonl}}"
    read = recipe(None, "sft=null", "reward=null", "ppo.reward_funcs=['a:b']", data)
    assert (read.data.demonstrations, [s.source for s in read.data.prompts]) == ([], ["p.jsonl"])
    with pytest.raises(
        RecipeError, match=r"'data.demonstrations.0' takes rows from 'data.preferences', which is empty"
    ):
        recipe(None, "reward=null", "ppo.reward_funcs=['a:b']", data)  # sft reads them
    with pytest.raises(RecipeError, match=r"'data.evaluation_prompts.0' takes rows from"):
        recipe(None, "sft=null", "reward=null", "ppo.reward_funcs=['a:b']", "data={prompts: {source: p.jsonl}}")


@pytest.mark.parametrize(
    ("reward", "ppo", "names", "weights"),
    [
        ("{}", "{}", ["joint"], None),
        ("{objectives: separate}", "{}", ["helpful", "harmless"], [0.5, 0.5]),
        ("{objectives: separate}", "{reward_weights: [2.0, 1.0]}", ["helpful", "harmless"], [2.0, 1.0]),
        ("{objectives: harmless, ensemble: 2}", "{}", ["harmless-0", "harmless-1"], [0.5, 0.5]),
        ("{ensemble: 4}", "{reward_funcs: ['a:b']}", [f"joint-{i}" for i in range(4)], [0.25] * 4 + [1.0]),
        ("{ensemble: 2}", "{score_combination: mean_minus_spread}", ["joint-0", "joint-1"], None),
    ],
)
def test_several_adapters_share_the_weight_of_one(recipe, reward, ppo, names, weights) -> None:
    read = recipe(None, f"reward={reward}", f"ppo={ppo}")
    assert stage_options(read, "reward").adapters == names
    assert trainer_config(read, "ppo", "out").reward_weights == weights


@pytest.mark.parametrize(
    ("reward", "ppo", "expected"),
    [
        ("{objectives: separate}", "{}", [2.0, -1.0]),  # half of each
        ("{objectives: separate}", "{reward_weights: [2.0, 1.0, 9.0], reward_funcs: ['a:b']}", [7.0, -2.0]),
        ("{objectives: separate}", "{score_combination: minimum}", [1.0, -2.0]),
        ("{objectives: separate}", "{score_combination: mean_minus_spread, score_spread_coef: 0.5}", [1.5, -1.5]),
        ("{objectives: helpful}", "{reward_weights: [2.0]}", [6.0, 0.0]),
        ("{objectives: separate}", "null", [2.0, -1.0]),
    ],
)
def test_the_evaluation_puts_scores_together_as_ppo_does(recipe, reward, ppo, expected) -> None:
    read = recipe(None, f"reward={reward}", f"ppo={ppo}")
    found = training_reward(read, {"helpful": [3.0, 0.0], "harmless": [1.0, -2.0]})
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("entities", [1, 13])
def test_a_valley_too_small_or_too_full_is_refused_before_anything_runs(entities: int) -> None:
    quickstart = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    with pytest.raises(RecipeError, match=rf"'world.entities' is {entities}; the valley has 2 to 12 animals"):
        load_recipe(quickstart, [f"world.entities={entities}"])


def test_keys_of_before_still_work_and_name_their_new_name(recipe, capsys) -> None:
    found = recipe(None, "data.judge_share=0.25", "data.held_out=0.2").data
    assert (found.heldout_share, found.evaluation_share) == (0.25, 0.2)
    told = capsys.readouterr().err
    assert "recipe key 'data.judge_share' is called 'data.heldout_share' now" in told
    assert "recipe key 'data.held_out' is called 'data.evaluation_share' now" in told
    with pytest.raises(RecipeError, match=r"'data.held_out' is called 'data.evaluation_share' now, and both are set"):
        recipe(None, "data.held_out=0.2", "data.evaluation_share=0.2")


def test_what_an_older_version_recorded_is_read_under_todays_names(recipe, capsys) -> None:
    inputs = stage_inputs(recipe(None), "reward")
    older = inputs | {"data": dict(inputs["data"])}
    for now, was in (("heldout_share", "judge_share"), ("evaluation_share", "held_out")):
        older["data"][was] = older["data"].pop(now)
    assert older != inputs
    assert inputs_as_today(older) == inputs_as_today(inputs) == inputs
    assert capsys.readouterr().err == ""


def test_keys_that_an_older_version_did_not_have_are_their_defaults(recipe) -> None:
    inputs = stage_inputs(recipe(None), "evaluate")
    assert {"reference", "pairs"} <= inputs["evaluate"].keys()
    older = inputs | {"evaluate": {k: v for k, v in inputs["evaluate"].items() if k not in ("reference", "pairs")}}
    assert inputs_as_today(older) == inputs
    changed = stage_inputs(recipe(None, "evaluate.reference=some/model"), "evaluate")
    assert inputs_as_today(older) != changed


def test_no_is_a_word_where_a_key_has_it(recipe, tmp_path) -> None:
    """`save_strategy: no` is false to YAML."""
    read = recipe(None, "sft.save_strategy=no", "ppo.eval_strategy=off")
    assert trainer_config(read, "sft", tmp_path).save_strategy.value == "no"
    assert trainer_config(read, "ppo", tmp_path).eval_strategy.value == "no"
    with pytest.raises(RecipeError, match=r"'sft.save_strategy' is True \(bool\)"):
        recipe(None, "sft.save_strategy=yes")
    with pytest.raises(RecipeError, match=r"'sft.run_name' is False \(bool\)"):
        recipe(None, "sft.run_name=no")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("sft: {per_device_train_batch_size: 0}", "'sft.per_device_train_batch_size' is 0; it must be at least 1"),
        ("sft: {gradient_accumulation_steps: -1}", "'sft.gradient_accumulation_steps' is -1; it must be at least 1"),
        ("sft: {num_train_epochs: 0}", "'sft.num_train_epochs' is 0.0; it must be over 0. A stage whose section"),
        ("reward: {num_train_epochs: -1}", "'reward.num_train_epochs' is -1.0; it must be over 0"),
        ("sft: {max_steps: 0}", "'sft.max_steps' is 0; it must be at least 1, or -1"),
        ("sft: {dataloader_num_workers: -1}", "'sft.dataloader_num_workers' is -1; it must be at least 0"),
        ("ppo: {num_mini_batches: 0}", "'ppo.num_mini_batches' is 0; it must be at least 1"),
        ("ppo: {num_ppo_epochs: 0}", "'ppo.num_ppo_epochs' is 0; it must be at least 1"),
        ("ppo: {total_episodes: 0}", "'ppo.total_episodes' is 0; it must be at least 1"),
        ("sft: {num_train_epochs: .nan}", "'sft.num_train_epochs' is nan; it must be over 0"),
        ("sft: {learning_rate: .nan}", "'sft.learning_rate' is nan; it must be at least 0"),
    ],
)
def test_what_would_train_nothing_or_end_in_a_traceback_is_refused(tmp_path, section, said) -> None:
    path = tmp_path / "r.yaml"
    rest = [] if section.startswith("ppo") else ["ppo: {per_device_train_batch_size: 8}"]
    own = [line for line in ("sft: {}", "reward: {}") if not section.startswith(line[:3])]
    path.write_text("\n".join(["name: r", "world: {}", section, *own, *rest]))
    with pytest.raises(RecipeError, match=re.escape(f"Recipe key {said}")):
        load_recipe(path)
    path.write_text("\n".join(["name: r", "world: {}", "sft: {max_steps: -1}", "reward: {}", "ppo: {}"]))
    load_recipe(path)  # -1 is transformers' own word for none
