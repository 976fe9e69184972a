"""Python that a model's repository ships runs where its model is named as trusted, and nowhere else."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from model_helpers import random_reward_adapter
from remote_code import with_code
from test_requests import ask, pairs, refused
from transformers import AutoModelForSequenceClassification

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.judges.naming import judge_of
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.pipeline import stage_inputs
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import ModelSection
from llm_rlhf.reward.model import RewardModel

TREE = {
    "name": "coded",
    "model": {"base": "own", "lora": {"r": 4}},
    "data": {"preferences": [{"source": "pairs.jsonl"}], "evaluation_share": 0.3},
    "sft": {"max_steps": 1, "per_device_train_batch_size": 4},
    "reward": {"max_steps": 1, "per_device_train_batch_size": 4, "reference_samples": 4, "reference_length": 8},
    "ppo": {"per_device_train_batch_size": 4, "num_mini_batches": 1, "total_episodes": 8, "response_length": 8},
    "evaluate": {"prompts": 8, "samples": 2, "resamples": 100, "suites": [], "best_of_n": 0, "perplexity_rows": 4},
}


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch) -> Path:
    """The mark that code of a repository leaves when it is imported, in a cache of modules of its own."""
    from transformers import dynamic_module_utils
    from transformers.utils import hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    for module in (dynamic_module_utils, hub):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    forget_code()
    return tmp_path / "canary"


def forget_code() -> None:
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def own(base_folder, tmp_path) -> Path:
    return with_code(base_folder, tmp_path / "own", "Own")


@pytest.fixture
def other(base_folder, tmp_path) -> Path:
    """Another repository's reward model."""
    plain = tmp_path / "plain"
    shutil.copytree(base_folder, plain)
    AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1).save_pretrained(plain)
    return with_code(plain, tmp_path / "other", "Other")


def write_recipe(folder: Path, **sections) -> str:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(60)))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**TREE, **sections}))
    return "recipe.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "recipe.yaml"], ["plan", "recipe.yaml"], ["run", "recipe.yaml", "model.trust_remote_code=[other]"],
        ["chat", "own"], ["chat", "own", "--trust-remote-code", "other"], ["evaluate", "own", "--reference", "plain"],
        ["export", "own"], ["evaluate", "--reward", "own", "--pairs", "pairs.jsonl"],
    ],
)  # fmt: skip
def test_fault_56_code_of_a_repository_is_refused_before_it_runs(own, base_folder, tmp_path, canary, arguments) -> None:
    shutil.copytree(base_folder, tmp_path / "plain")
    write_recipe(tmp_path)
    done = ask(*arguments)
    refused(
        done, "'own' comes with Python code of its own", "model.trust_remote_code: [own]", "--trust-remote-code own"
    )
    assert done.stderr.count("comes with Python") == 1
    assert not canary.exists()


@pytest.mark.slow
def test_fault_56_with_the_flag_it_runs_from_training_to_talking(own, tmp_path, canary) -> None:
    """SFT, reward models, PPO, evaluation, chat and export of a base with code and a tokenizer of its own."""
    recipe = write_recipe(tmp_path)
    done = ask("run", recipe, "model.trust_remote_code=true")
    assert done.exit_code == 0, (done.exception, done.stderr[-2000:])
    assert canary.exists()
    assert (tmp_path / "runs/coded/sft/model/modeling_own.py").is_file(), "the merged model stands by itself"
    for arguments in (["chat", "runs/coded", "--only", "policy"], ["export", "runs/coded", "--merge", "--to", "out"]):
        done = ask(*arguments)
        assert done.exit_code == 0, (done.exception, done.stderr[-2000:])
    assert (tmp_path / "out/modeling_own.py").is_file()
    refused(ask("chat", "out"), "'out' comes with Python code of its own")  # handed on, it is another's to trust
    done = ask("evaluate", "runs/coded", "--limit", "4", "--no-refusals", "--output", "again")
    assert done.exit_code == 0, (done.exception, done.stderr[-2000:])
    with pytest.raises(RecipeError, match="other"):
        judge_of("local:other", subject_of("runs/coded").model, tmp_path / "cache")


@pytest.mark.slow
def test_fault_56_trusting_one_repository_trusts_no_other(own, other, base_folder, tmp_path, canary) -> None:
    recipe = write_recipe(tmp_path, reward={"model": "other"})
    refused(ask("run", recipe, "model.trust_remote_code=true"), "reward.model", "'other' comes with Python code")
    assert not list(tmp_path.glob("modules/**/modeling_other.py")), "nor was it fetched"
    recipe = write_recipe(tmp_path, model={"base": str(base_folder)}, reward={"model": "other"}, sft=None)
    for trusted in ("true", "[own]"):
        refused(ask("run", recipe, f"model.trust_remote_code={trusted}"), "'other' comes with Python code")
    done = ask("run", recipe, "model.trust_remote_code=[other]", "evaluate=null")
    assert done.exit_code == 0, (done.exception, done.stderr[-2000:])
    recipe = write_recipe(
        tmp_path, name="beside", model={"base": str(base_folder)}, ppo={**TREE["ppo"], "reward_funcs": ["other"]}
    )
    refused(ask("run", recipe, "model.trust_remote_code=true"), "ppo.reward_funcs", "'other' comes with Python code")


@pytest.mark.slow
def test_fault_56_an_adapter_is_not_its_base(own, tmp_path, canary, monkeypatch) -> None:
    monkeypatch.setenv("CANARY", "/dev/null")  # to make it, the code runs
    adapter = random_reward_adapter(own, tmp_path / "adapter", trust_remote_code=True)
    monkeypatch.setenv("CANARY", str(canary))
    forget_code()
    with pytest.raises(ValueError, match="comes with Python code"):
        RewardModel.from_pretrained(adapter, trust_remote_code=True)
    assert RewardModel.from_pretrained(adapter, trust_remote_code=[str(own)]).max_length > 0


@pytest.mark.slow
@pytest.mark.parametrize("line", ["import a_package_that_is_missing", "raise KeyError('of the code')", "def ("])
def test_fault_56_code_that_fails_is_told_in_one_message(own, tmp_path, line) -> None:
    for file in own.glob("configuration_*.py"):
        file.write_text(f"{line}\n{file.read_text()}")
    refused(ask("run", write_recipe(tmp_path), "model.trust_remote_code=true"), "model.base", "own")


def test_what_is_trusted(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert ModelSection(base="a").trusted == []
    assert not ModelSection(base="a").trusts_base
    yes, named = ModelSection(base="a", trust_remote_code=True), ModelSection(base="a", trust_remote_code=["b/c"])
    assert (yes.trusts_base, yes.trusts("a"), yes.trusts("./a/"), yes.trusts("link"), yes.trusts("b")) == (
        True, True, True, True, False,
    )  # fmt: skip
    assert (named.trusts_base, named.trusts("b/c"), named.trusts("b/c/"), named.trusts("B/c")) == (
        False,
        True,
        False,
        False,
    )
    made = yes.made_into("run/sft/model", "run/ppo/policy")
    assert (made.base, made.trusts_base, made.trusts("run/ppo/policy")) == ("run/sft/model", True, True)
    made = named.made_into("run/sft/model", "run/ppo/policy")
    assert (made.trusts_base, made.trusts("run/ppo/policy"), made.trusts("b/c")) == (False, False, True)
    assert ModelSection(base="a").made_into("b").trust_remote_code is False


def test_trust_makes_no_stage_another(base_folder, tmp_path) -> None:
    write_recipe(tmp_path, model={"base": str(base_folder)})
    recipe = load_recipe("recipe.yaml")
    trusting = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, trust_remote_code=["b/c"]))
    assert stage_inputs(recipe, "ppo") == stage_inputs(trusting, "ppo")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_fault_56_code_that_lies_in_another_repository_has_to_be_trusted_too(own, tmp_path, canary, file) -> None:
    known = json.loads((own / file).read_text())
    elsewhere = json.dumps(known["auto_map"]).replace(
        '"' + ("configuration" if file == "config.json" else "tokenization"),
        '"owner/elsewhere--' + ("configuration" if file == "config.json" else "tokenization"),
    )
    (own / file).write_text(json.dumps(known | {"auto_map": json.loads(elsewhere)}))
    write_recipe(tmp_path)
    for asked in (
        ["run", "recipe.yaml", "model.trust_remote_code=true"],
        ["chat", "own", "--trust-remote-code", "own"],
    ):
        refused(ask(*asked), "'own' takes its code from another repository, owner/elsewhere", "[own, owner/elsewhere]")
        if asked[0] == "chat" or file == "config.json":
            assert not canary.exists()
