"""What cannot work with weights that a launch spreads over processes is refused before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from chain_helpers import SECTIONS, TINY, write_recipe
from fsdp_on_cpus import FSDP2

from llm_rlhf import spreading
from llm_rlhf.errors import RecipeError
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe, trainer_config
from llm_rlhf.spreading import check_spreading

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.fixture
def launched(monkeypatch) -> Any:
    """Sets what a launch tells its processes, on a machine with GPUs."""
    monkeypatch.setattr(spreading, "has_accelerator", lambda: True)

    def tell(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return tell


def refusal(folder: Path, *overrides: str, only: tuple[str, ...] = ("sft", "reward", "ppo"), **sections: Any) -> str:
    """What the check says of these stages; their configurations are made before the launch is known."""
    recipe = load_recipe(write_recipe(folder, **sections), list(overrides))
    stages = [stage for stage in only if getattr(recipe, stage) is not None]
    configs = {stage: trainer_config(recipe, stage, folder / stage) for stage in stages}
    with pytest.raises(RecipeError) as error:
        check_spreading(recipe, configs)
    return str(error.value)


@pytest.mark.parametrize(
    ("told", "overrides", "said"),
    [
        ({"FSDP_VERSION": "1"}, [], "fsdp_version of the launch's configuration is 1; set it to 2"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, [], "fsdp_cpu_ram_efficient_loading of the launch's"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, [], "fsdp_offload_params of the launch's configuration is true"),
        ({}, ["model.quantization=nf4"], "'model.quantization' is 'nf4', whose weights FSDP cannot spread"),
        ({}, ["sft.save_strategy=epoch"], "'sft.save_strategy' is 'epoch', but a checkpoint cannot be read back"),
        (
            {},
            ["reward.use_liger_kernel=true"],
            "'reward.use_liger_kernel' is true, but Liger's kernels have",
        ),
        ({}, ["ppo.use_transformers_continuous_batching=true"], "'ppo.use_transformers_continuous_batching' is true"),
        ({}, ["ppo.reward_funcs=[org/judge]"], "The reward model 'org/judge' is one of its own"),
    ],
)
def test_refused_under_fsdp(tmp_path, launched, told, overrides, said) -> None:
    launched(FSDP2 | told)
    assert said in refusal(tmp_path, *overrides)


def test_what_works_under_fsdp_is_not_refused(tmp_path, launched) -> None:
    launched(FSDP2)
    recipe = load_recipe(write_recipe(tmp_path), [])
    configs = {stage: trainer_config(recipe, stage, tmp_path / stage) for stage in ("sft", "reward", "ppo")}
    assert {config.save_strategy.value for config in configs.values()} == {"no"}
    check_spreading(recipe, configs)


@pytest.mark.parametrize("method", SECTIONS)
def test_other_methods_are_not_refused_under_fsdp(tmp_path, launched, method) -> None:
    launched(FSDP2)
    recipe = load_recipe(write_recipe(tmp_path, ppo=None, **{method: SECTIONS[method]}))
    check_spreading(recipe, {method: trainer_config(recipe, method, tmp_path / method)})


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_reward_model_of_its_own_is_refused_where_replies_are_scored_under_fsdp(tmp_path, launched, method) -> None:
    launched(FSDP2)
    section = SECTIONS[method] | {"reward_funcs": ["org/judge"]}
    said = refusal(tmp_path, only=(method,), ppo=None, **{method: section})
    assert said.startswith("The reward model 'org/judge' is one of its own")


def test_fsdp_that_accelerate_would_pass_over_is_refused_before_anything_is_made(tmp_path, monkeypatch) -> None:
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    recipe = load_recipe(write_recipe(tmp_path), [f"output_dir={tmp_path / 'run'}"])
    with pytest.raises(RecipeError, match="asks for FSDP, which accelerate passes over without a GPU; launch with"):
        run_recipe(recipe)
    assert not (tmp_path / "run" / "world").exists()


def test_what_ppo_cannot_do_under_fsdp_is_told_before_anything_is_made(tmp_path, launched) -> None:
    launched(FSDP2)
    overrides = [f"output_dir={tmp_path / 'run'}", "ppo.decoding=compiled"]
    recipe = load_recipe(write_recipe(tmp_path), overrides)
    with pytest.raises(RecipeError, match="Recipe section 'ppo': decoding is 'compiled', but under FSDP"):
        run_recipe(recipe)
    assert not (tmp_path / "run" / "world").exists()


def test_deepspeed_that_accelerate_would_pass_over_is_refused(tmp_path, monkeypatch) -> None:
    recipe = load_recipe(write_recipe(tmp_path, ppo=None))
    configs = {"sft": trainer_config(recipe, "sft", tmp_path / "sft")}
    for name, value in DEEPSPEED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="asks for DeepSpeed, which accelerate passes over without a GPU; launch"):
        check_spreading(recipe, configs)


def test_deepspeed_is_refused_where_its_sources_say_it_goes_wrong(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(spreading, "has_accelerator", lambda: True)
    stages = [stage for stage in TINY if stage in ("sft", "reward", "ppo")]
    recipe = load_recipe(write_recipe(tmp_path), [f"{stage}.save_strategy=no" for stage in stages])  # the default there
    with_ppo = {stage: trainer_config(recipe, stage, tmp_path / stage) for stage in stages}
    configs = {stage: config for stage, config in with_ppo.items() if stage != "ppo"}
    saving = trainer_config(load_recipe(write_recipe(tmp_path), []), "sft", tmp_path / "sft")
    for name, value in DEEPSPEED.items():
        monkeypatch.setenv(name, value)
    check_spreading(recipe, configs)  # ZeRO-2, accelerate's default
    with pytest.raises(RecipeError, match=r"'sft.save_strategy' is 'steps', but to go on from a checkpoint"):
        check_spreading(recipe, configs | {"sft": saving})
    with pytest.raises(RecipeError, match="section 'ppo' cannot run under DeepSpeed: its engine rounds the heads"):
        check_spreading(recipe, with_ppo)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(RecipeError, match="ZeRO-3, under which transformers spreads every model"):
        check_spreading(recipe, configs)
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    check_spreading(recipe, configs)
