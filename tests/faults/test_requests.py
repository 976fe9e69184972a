"""A wrong request: exit code 2 and one message that says what to do, no traceback, nothing half-written."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from planted_liger import plant
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.models.compiler import compiler, missing
from llm_rlhf.pipeline import _leftovers
from llm_rlhf.run_folder import RunFolder


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def recipe_on(base: Path, folder: Path, rows: list[dict] | None, **sections) -> Path:
    if rows is not None:
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "faulty",
        "model": {"base": str(base)},
        "data": {"preferences": [{"source": "pairs.jsonl"}], "evaluation_share": 0.3},
        "sft": {"max_steps": 1},
        "reward": {"max_steps": 1},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def pairs(n: int) -> list[dict]:
    return [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)]


def refused(done: Result, *words: str) -> None:
    assert done.exit_code == 2, (done.exception, done.stderr[-2000:])
    (message,) = [line for line in done.stderr.splitlines() if line.lower().startswith("error:")]
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], ["no recipe at nowhere.yaml"]),
        (["run", "recipe.yaml", "sft.lerning_rate=1"], ["sft.lerning_rate", "Did you mean 'sft.learning_rate'"]),
        (["run", "recipe.yaml", "--only", "ppo"], ["--only ppo", "sft, reward"]),
        (["run", "recipe.yaml", "--from", "sft", "--only", "sft"], ["exclude each other"]),
        (["run", "recipe.yaml", "--only", "reward"], ["--only reward needs sft"]),
        (["run"], ["Missing argument"]),
        (["fly"], ["No such command 'fly'"]),
    ],
)
def test_wrong_requests(base_folder, tmp_path, arguments, words) -> None:
    recipe_on(base_folder, tmp_path, pairs(40))
    refused(ask(*arguments), *words)


def test_a_missing_data_file_is_named_before_anything_is_made(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, None)
    refused(ask("run", "recipe.yaml"), "pairs.jsonl")
    assert not (tmp_path / "runs" / "faulty" / "sft").exists()


def test_a_suite_of_a_name_that_is_taken_is_refused_whatever_stage_is_asked_for(base_folder, tmp_path) -> None:
    own = [{"name": "kl", "prompts": [{"source": "pairs.jsonl"}], "function": "a:b"}]
    recipe_on(base_folder, tmp_path, pairs(40), ppo={"total_episodes": 16}, evaluate={"own": own})
    refused(ask("run", "recipe.yaml", "--only", "sft"), "evaluate.own.0.name", "'kl'", "a measure of the report's own")
    assert not (tmp_path / "runs").exists()


def test_empty_data(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, [])
    refused(ask("run", "recipe.yaml"), "pairs.jsonl")


def test_a_base_that_is_not_there(tmp_path) -> None:
    recipe_on(tmp_path / "no-model", tmp_path, pairs(40))
    refused(ask("run", "recipe.yaml"), "model.base", "no-model")


PPO = {"total_episodes": 16, "per_device_train_batch_size": 8, "response_length": 8}
FUNCTIONS = """
def brevity(completions, **kwargs):
    return [-float(len(completion[0]["content"])) for completion in completions]

def of_one_reply(prompt, reply):
    return 1.0

def one_number(completions, **kwargs):
    return [1.0]
"""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ppo.per_device_train_batch_size=64"], ["65 prompts for PPO", "6 of them kept back", "one rollout takes 64"]),
        (["data.preferences.0.limit=10"], ["of 9 prompts none can be kept back", "ppo.eval_prompts", "set it to 0"]),
        (["data.preferences.0.limit=1"], ["The split evaluation_pairs is empty"]),
        (["model.base=no/where"], ["model.base", "'no/where' is no folder here and not in the hub's cache", "OFFLINE"]),
        (["model.base=./nowhere"], ["model.base", "no hub id, which is OWNER/NAME"]),
        (["model.base=pairs.jsonl"], ["model.base", "no folder here but a file"]),
        (["sft.push_to_hub=true"], ["'sft.push_to_hub'", "log in (hf auth login)"]),
        (["sft.eval_strategy=epoch"], ["'sft.eval_strategy' is 'epoch'", "keeps no rows back", "remove it"]),
        (["reward.metric_for_best_model=loss"], ["'reward.metric_for_best_model'", "keeps no rows back"]),
        (["ppo.eval_strategy=steps", "ppo.eval_steps=1", "ppo.eval_prompts=0"], ["'ppo.eval_prompts' is 0"]),
        (["ppo.load_best_model_at_end=true"], ["load_best_model_at_end", "keep 'best'"]),
        (["ppo.metric_for_best_model=eval_reward"], ["metric_for_best_model", "keep 'best'"]),
        (["ppo.lr_scheduler_type=reduce_lr_on_plateau"], ["'ppo'", "waits for an evaluation loss"]),
        (["ppo.lr_scheduler_type=warmup_stable_decay"], ["'ppo.lr_scheduler_type'", "num_decay_steps"]),
        (["ppo.optim=grokadamw"], ["'ppo.optim' is 'grokadamw'", "install"]),
        (["ppo.cache_implementation=nothing"], ["'ppo' contradicts itself", "`cache_implementation`"]),
        (["ppo.fsdp=full_shard"], ["'ppo.fsdp' is set, but the launch says how weights are spread"]),
        (["ppo.response_length=256"], ["'ppo.response_length' is 256", "context of 256 tokens", "lower it"]),
        (["model.context_length=300"], ["'model.context_length' is 300", "256"]),
        (["model.lora.target_modules=[nothing]"], ["'model.lora.target_modules' is ['nothing']", "not found"]),
        (["reward.max_length=3"], ["None of the reward_pairs fits into 3 tokens; raise reward.max_length"]),
        (["reward.reference_length=250"], ["replies of 250 tokens, and there is none; lower reward.reference_length"]),
        (["reward.objectives=harmless"], ["no training pair of the recipe is harmless"]),
        (["ppo.reward_funcs=['rewards:nothing']"], ["'rewards:nothing' cannot be loaded", "AttributeError"]),
        (["ppo.reward_funcs=['rewards:of_one_reply']"], ["'of_one_reply' cannot be called", "**kwargs"]),
        (["ppo.reward_funcs=[no/where]"], ["'ppo.reward_funcs': 'no/where' is no folder here"]),
        (["sft=null", "reward={model: BASE}"], ["'reward.model'", "a reward model has one"]),
        (["reward={model: ADAPTER}"], ["'reward.model'", "leave 'sft' out with model.base"]),
        (["sft=null", "reward={model: ADAPTER, max_steps: 1}"], ["'reward.max_steps' is set, but 'reward.model'"]),
        (["ppo=null", "reward={model: ADAPTER}"], ["there is no 'ppo'", "llm-rlhf evaluate --reward"]),
    ],
)  # fmt: skip
def test_what_would_end_the_run_later_is_told_before_anything_is_trained(
    base_folder, reward_folder, tmp_path, overrides, words
) -> None:
    recipe_on(base_folder, tmp_path, pairs(80), ppo=PPO)
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    named = [o.replace("BASE", str(base_folder)).replace("ADAPTER", str(reward_folder)) for o in overrides]
    if not any(o.startswith("reward={") for o in named):
        named.append("reward.reference_samples=8")
        if not any("reference_length" in o for o in named):
            named.append("reward.reference_length=16")
    refused(ask("run", "recipe.yaml", *named), *words)
    assert not list((tmp_path / "runs").glob("*/*/manifest.json"))
    assert not list((tmp_path / "runs").glob("*/partial-*"))


@pytest.mark.parametrize(
    ("key", "package", "asked"),
    [
        ("model.quantization=nf4", "bitsandbytes", "is_bitsandbytes_available"),
        ("sft.use_liger_kernel=true", "liger-kernel", "is_liger_kernel_available"),
        ("ppo.use_vllm=true", "vllm", "is_vllm_available"),
    ],
)
def test_a_package_that_is_not_there_is_told_ahead(base_folder, tmp_path, monkeypatch, key, package, asked) -> None:
    monkeypatch.setattr(f"llm_rlhf.extras.{asked}", lambda: False)
    recipe_on(base_folder, tmp_path, pairs(80), ppo=PPO)
    wanted = {"vllm": "'llm-rlhf[vllm]'", "liger-kernel": "'liger-kernel>="}.get(package, package)
    refused(ask("run", "recipe.yaml", key), f"'{key.partition('=')[0]}' takes {package}", f"pip install {wanted}")


@pytest.mark.parametrize("key", ["model.compile=true", "ppo.decoding=compiled", "evaluate.decoding=compiled"])
def test_a_compiler_that_is_not_there_is_told_ahead(base_folder, tmp_path, monkeypatch, key) -> None:
    monkeypatch.setattr("llm_rlhf.models.compiler.shutil.which", lambda name: None)
    recipe_on(base_folder, tmp_path, pairs(80), ppo=PPO)
    monkeypatch.delenv("CXX", raising=False)
    words = f"'{key.partition('=')[0]}': torch.compile takes a compiler", "install", "or remove the key"
    refused(ask("run", "recipe.yaml", key), *words)


@pytest.mark.parametrize("there", [False, True])
def test_what_continuous_batching_does_without_flash_attention_is_told_ahead(
    base_folder, tmp_path, monkeypatch, there
) -> None:
    monkeypatch.setattr("llm_rlhf.extras.is_flash_attn_2_available", lambda **kwargs: there)
    recipe_on(base_folder, tmp_path, pairs(80), ppo=PPO)
    asked = ["ppo.use_transformers_continuous_batching=true", "ppo.response_length=256"]  # the latter is refused
    said = ask("run", "recipe.yaml", *asked)
    assert said.exit_code == 2
    assert ("each reply then attends to the tokens of all others" in said.output) == (not there)


def test_a_compiler_is_looked_for_as_torch_looks(monkeypatch) -> None:
    there = {"g++": "/usr/bin/g++", "gcc": "/usr/bin/gcc", "c++": "/usr/bin/c++"}
    monkeypatch.setattr("llm_rlhf.models.compiler.shutil.which", there.get)
    monkeypatch.setattr("llm_rlhf.models.compiler.sys.platform", "linux")
    for variable in ("CXX", "CC"):
        monkeypatch.delenv(variable, raising=False)
    assert (compiler("cpu"), compiler("cuda")) == ("/usr/bin/g++", "/usr/bin/gcc")
    monkeypatch.setenv("CXX", "ccache g++")  # which torch runs as one name
    assert compiler("cpu") is None
    assert "no ccache g++ here: unset CXX" in missing("cpu")
    monkeypatch.delenv("CXX")
    del there["g++"]
    assert compiler("cpu") is None  # torch does not ask for c++
    assert missing("cpu").endswith("there is no g++ here: install g++")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.quantization=nf4"], ["'ppo'", "vllm_weights is 'merged'", "nf4", "Set vllm_weights: adapter"]),
        (["model.quantization=int8"], ["'ppo'", "int8", "vllm_mode: server"]),
        (["ppo.vllm_weights=adapter", "model.lora=none"], ["trains all weights", "vllm_weights: merged"]),
        (["ppo.vllm_weights=adapter", "ppo.vllm_mode=server"], ["vllm_mode is 'server'"]),
        (["ppo.vllm_weights=adapter", "ppo.vllm_enable_sleep_mode=true"], ["vllm_enable_sleep_mode is true"]),
        (["ppo.vllm_weights=adapter", "model.lora.r=600"], ["r 600, and vLLM takes at most 512"]),
        (["ppo.vllm_weights=all"], ["vllm_weights", "'all'", "'merged', 'adapter'"]),
    ],
)
def test_what_vllm_cannot_be_sent_is_told_ahead(base_folder, tmp_path, monkeypatch, overrides, words) -> None:
    monkeypatch.setattr("llm_rlhf.extras.is_vllm_available", lambda: True)
    recipe_on(base_folder, tmp_path, pairs(80), ppo=PPO)
    refused(ask("run", "recipe.yaml", "ppo.use_vllm=true", *overrides), *words)
    assert not list((tmp_path / "runs").glob("*/sft"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["sft.liger_kernel_config={rope: false}"], ["'sft.liger_kernel_config' is set", "'sft.use_liger_kernel'"]),
        (["ppo.use_liger_kernel=true", "GPU"], ["'ppo.use_liger_kernel' takes a GPU", "remove it"]),
        (["reward.use_liger_kernel=true", "reward.liger_kernel_config={geglu: true}"], ["'reward'", "geglu is set"]),
        (
            ["ppo.use_liger_kernel=true", "ppo.liger_kernel_config={fused_linear_cross_entropy: true}"],
            ["'ppo'", "fused_linear_cross_entropy is True", "Remove it"],
        ),
    ],
)
def test_what_ligers_kernels_cannot_do_is_told_ahead(base_folder, tmp_path, monkeypatch, keys, words) -> None:
    plant(monkeypatch)
    monkeypatch.setattr("llm_rlhf.extras.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr("llm_rlhf.models.liger.runs_here", lambda: "GPU" not in keys)
    recipe_on(base_folder, tmp_path, pairs(80), ppo=PPO)
    refused(ask("run", "recipe.yaml", *[key for key in keys if key != "GPU"]), *words)
    assert not list((tmp_path / "runs").glob("*/*/manifest.json"))


def test_liger_and_compiled_layers_do_not_go_together(base_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("llm_rlhf.extras.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr("llm_rlhf.models.liger.runs_here", lambda: True)
    recipe_on(base_folder, tmp_path, pairs(80))
    done = ask("run", "recipe.yaml", "sft.use_liger_kernel=true", "model.compile=true")
    refused(done, "'sft.use_liger_kernel' is true, and so is 'model.compile'", "Remove one")


def test_an_activation_that_ligers_kernel_does_not_compute_is_told_ahead(base_folder, tmp_path, monkeypatch) -> None:
    plant(monkeypatch)
    monkeypatch.setattr("llm_rlhf.extras.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr("llm_rlhf.models.liger.runs_here", lambda: True)
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(base_folder, hidden_act="gelu").save_pretrained(other)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(other)
    recipe_on(other, tmp_path, pairs(80))
    refused(ask("run", "recipe.yaml", "reward.use_liger_kernel=true"), "'reward'", "'gelu'", "{swiglu: false}")


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path, monkeypatch) -> None:
    asked = []

    def unreachable(self, path, timeout):
        asked.append((path, timeout))
        raise ConnectionError("no route\nsecond line")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    recipe_on(Path("owner/name"), tmp_path, pairs(40))
    refused(ask("run", "recipe.yaml"), "'model.base': 'owner/name'", "the hub cannot be reached (no route)")
    assert asked == [("owner/name", 10)]


def test_an_adapter_of_another_base_is_no_reward_model_of_this_one(base_folder, reward_folder, tmp_path) -> None:
    """Its weights fit there, too, and would score as another model does."""
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    model.get_input_embeddings().weight.data.mul_(2)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(other)
    recipe_on(other, tmp_path, pairs(80), ppo=PPO, reward={"model": str(reward_folder)}, sft=None)
    refused(ask("run", "recipe.yaml"), "'reward.model': the adapter", f"PPO would start from {other}")


def test_a_changed_recipe_is_told_before_a_missing_stage_is_trained(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, pairs(80), ppo=PPO)
    done = tmp_path / "runs" / "faulty" / "ppo"
    done.mkdir(parents=True)
    (done / "manifest.json").write_text(json.dumps({"inputs": {"seed": 1}, "files": {}}))
    refused(ask("run", "recipe.yaml"), "ppo was made by another recipe", "seed: 1 -> 0", "--from ppo")
    assert not list((tmp_path / "runs").glob("*/partial-*"))


def made_before(run: Path, *stages: str) -> None:
    for stage in stages:
        (run / stage).mkdir(parents=True)
        (run / stage / "manifest.json").write_text(json.dumps({"inputs": {}, "files": {}}))


@pytest.mark.parametrize(
    ("there", "option", "named", "remedy"),
    [
        (["sft", "reward", "ppo"], [], "ppo", "Run with --from dpo"),
        (["sft", "reward", "ppo", "evaluate"], ["--from", "evaluate"], "ppo", "Run with --from dpo"),
        (["sft", "kto"], [], "kto", "Run with --from dpo"),
        (["world", "sft"], ["--from", "dpo"], "world", "Run with --from sft"),
    ],
)
def test_a_stage_of_another_recipe_is_not_taken_for_one_of_this(
    base_folder, tmp_path, there, option, named, remedy
) -> None:
    """Where DPO stands in the place of PPO, the folder would still say that PPO's is the policy."""
    made_before(tmp_path / "runs" / "faulty", *there)
    recipe_on(base_folder, tmp_path, pairs(80), dpo={"max_steps": 1}, evaluate={})
    refused(ask("run", "recipe.yaml", *option), f"faulty/{named} was made by another recipe", f"no {named}.", remedy)
    assert all((tmp_path / "runs" / "faulty" / stage).is_dir() for stage in there)


def test_without_the_stage_above_it_a_stage_of_another_recipe_is_moved_by_hand(base_folder, tmp_path) -> None:
    made_before(tmp_path / "runs" / "faulty", "ppo")
    recipe_on(base_folder, tmp_path, pairs(80))
    refused(ask("run", "recipe.yaml"), "faulty/ppo was made by another recipe", "Move it to runs/faulty/archive")


def test_from_moves_the_stage_of_another_recipe_and_its_evaluation(tmp_path) -> None:
    run = RunFolder(tmp_path / "run")
    made_before(run.path, "sft", "ppo", "evaluate")
    assert _leftovers(run, ["dpo"], "dpo") == ["sft", "ppo", "evaluate"]
    assert _leftovers(run, ["sft", "dpo", "evaluate"], "sft") == ["ppo"]
    assert _leftovers(run, ["sft", "ppo"], None) == []  # an evaluation of this policy, which is not asked for now


def test_a_finished_run_needs_nothing_that_was_only_there_to_train_it(base_folder, tmp_path, monkeypatch) -> None:
    """All stages but those to be made are left unasked: the base may have gone since."""
    recipe_on(base_folder, tmp_path, pairs(80), ppo=PPO)
    monkeypatch.setattr(RunFolder, "finished", lambda *args: True)
    done = ask("run", "recipe.yaml", "model.base=no/where")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("done before") == 3


@pytest.mark.slow
def test_a_function_that_returns_too_few_numbers_ends_the_run_in_one_message(base_folder, tmp_path) -> None:
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    ppo = PPO | {"reward_funcs": ["rewards:one_number"]}
    recipe_on(base_folder, tmp_path, pairs(80), ppo=ppo, sft=None, reward=None)
    done = ask("run", "recipe.yaml")
    assert done.exit_code == 1, done.exception
    assert "error: The reward function rewards:one_number returned 1 numbers for" in done.stderr


@pytest.mark.slow
def test_malformed_rows_are_counted_and_the_run_goes_on(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, pairs(60))
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "half a row\n{"prompt": "q", "chosen": "same", "rejected": "same"}\n')
        long = "a long question " * 100  # beyond the tiny model's 256 tokens
        file.write(json.dumps({"prompt": long, "chosen": "yes", "rejected": "no"}) + "\n")
        turns = [{"role": r, "content": "x" * 120} for r in ("user", "assistant", "user")]
        file.write(json.dumps({"prompt": turns, "chosen": [{"role": "assistant", "content": "yes"}],
                               "rejected": [{"role": "assistant", "content": "no"}]}) + "\n")  # fmt: skip
    done = ask("run", "recipe.yaml")
    run = tmp_path / "runs" / "faulty"
    assert done.exit_code == 0, (done.exception, done.stderr[-3000:])
    counts = json.loads((run / "data" / "counts.json").read_text())["preferences"]
    assert counts["read"] == 64
    assert sum(counts["set_aside"].values()) == 2
    rows = [json.loads(line) for line in (run / "data" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["row"] for row in rows if "pairs.jsonl" in row["source"]} == {61, 62}
    lengths = json.loads((run / "reward" / "lengths.json").read_text())
    assert sum(s["too_long"] for s in lengths.values()) == 1
    assert sum(s["cut_at_turns"] for s in lengths.values()) == 1


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_exit_code_one(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, pairs(40), sft={"learning_rate": 1e30, "max_steps": 20, "max_grad_norm": 0.0})
    done = ask("run", "recipe.yaml")
    assert done.exit_code == 1, done.stderr[-2000:]
    assert isinstance(done.exception, SystemExit)  # anything else would have shown its traceback
    assert "The sft loss is" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "faulty" / "sft").exists()


def test_help_shows_an_example() -> None:
    done = ask("run", "--help")
    assert done.exit_code == 0
    assert "llm-rlhf run recipes/quickstart.yaml" in done.stdout
