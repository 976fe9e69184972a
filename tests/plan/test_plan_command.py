"""`llm-rlhf plan` on a tiny recipe: what it says, what it refuses, and that it leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.cli.plan import memory_bytes
from llm_rlhf.errors import DataError
from llm_rlhf.plan.forecast import Forecast, StagePlan, with_value
from llm_rlhf.plan.remedies import Remedy, remedies
from llm_rlhf.plan.text import advice, lines, refusal, size, where
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import Recipe, meant_for


@pytest.fixture
def recipe(tmp_path: Path, base_folder: Path) -> Path:
    """A whole chain over twenty-four pairs; the base has no weights."""
    base = tmp_path / "base"
    base.mkdir()
    for file in base_folder.iterdir():
        if file.suffix != ".safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No." * (1 + i % 3)} for i in range(60)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    few = {"per_device_train_batch_size": 2, "max_steps": 3}
    tree: dict[str, Any] = {
        "name": "tiny", "output_dir": str(tmp_path / "run"), "model": {"base": str(base), "lora": {"r": 2}},
        "data": {"preferences": [{"source": str(pairs)}], "evaluation_share": 0.2, "near_duplicates": None},
        "sft": few, "reward": dict(few),
        "ppo": {"per_device_train_batch_size": 2, "num_mini_batches": 2, "total_episodes": 8, "response_length": 8},
        "evaluate": {"batch_size": 4, "response_length": 8, "suites": []},
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def asked(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


@pytest.mark.slow
def test_the_command(recipe: Path) -> None:
    result = asked(str(recipe), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    stages = told["stages"]
    assert list(stages) == ["sft", "reward", "ppo", "evaluate"]
    assert stages["sft"]["optimizer_steps"] == 3
    assert stages["reward"]["optimizer_steps"] == 6  # the reward model and the held-out one
    assert stages["ppo"]["optimizer_steps"] == 8  # two rollouts of 4 replies, 2 epochs of 2 mini-batches each
    for stage in stages.values():
        steps = stage["memory"]["steps"]
        largest = max(sum(step.values()) for step in steps.values())
        assert stage["memory"]["bytes"] == told["process_bytes"] + largest
    assert "KV cache" in stages["ppo"]["memory"]["steps"]["sampling, last token"]
    assert not (recipe.parent / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["sft.use_liger_kernel=true", "ppo.use_vllm=true", "model.compile=true"])
def test_a_plan_for_a_gpu_asks_for_none_of_its_packages_here(recipe: Path, monkeypatch, key: str) -> None:
    monkeypatch.setattr("llm_rlhf.extras.is_liger_kernel_available", lambda: False)
    monkeypatch.setattr("llm_rlhf.extras.is_vllm_available", lambda: False)
    monkeypatch.setattr("llm_rlhf.extras.missing", lambda device: "there is no compiler")
    result = asked(str(recipe), key, "--device", "cuda", "--memory", "24GiB")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_every_stage_that_does_not_fit_is_refused_with_what_would_help(recipe: Path) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(yaml.safe_dump({k: v for k, v in tree.items() if k not in ("ppo", "evaluate")}), encoding="utf-8")
    result = asked(str(recipe), "--device", "cuda", "--memory", "0.1MiB", "model.dtype=float32")
    assert result.exit_code == 2
    for stage in ("sft", "reward"):
        assert f"{stage} does not fit: " in result.stdout
        assert f"'{stage}' (" in result.stderr
    assert "sft.per_device_train_batch_size=1 sft.gradient_accumulation_steps=2 " in result.stdout
    assert "all of these together" in result.stdout
    told = asked(str(recipe), "--device", "cuda", "--memory", "0.1MiB", "--json", "model.dtype=float32")
    assert told.exit_code == 2
    for stage in json.loads(told.stdout.splitlines()[-1])["stages"].values():
        assert not stage["memory"]["fits"]
        assert stage["memory"]["remedies"]
        assert all(found["bytes"] < stage["memory"]["bytes"] for found in stage["memory"]["remedies"])


@pytest.mark.slow
def test_what_is_tried_holds_what_the_changed_recipe_holds(recipe: Path) -> None:
    """Room for two thirds: the mildest batch that fits is named, and each is what a plan of the changed recipe says."""
    overrides = ["sft.gradient_checkpointing=false", "sft.per_device_train_batch_size=8"]
    forecast = Forecast(load_recipe(recipe, overrides), "cuda")
    plan = forecast.stage(forecast.recipe, "sft")
    room = plan.bytes * 2 // 3
    found = {remedy.told: remedy.bytes for remedy in remedies(forecast, plan, room)}
    assert set(found) >= {"sft.gradient_checkpointing=true", "model.dtype=bfloat16"}
    with_it = forecast.stage(with_value(forecast.recipe, "sft.gradient_checkpointing", True), "sft")
    assert found["sft.gradient_checkpointing=true"] == with_it.bytes < plan.bytes
    held = {rows: forecast.stage(_with_rows(forecast, rows), "sft").bytes for rows in (4, 2, 1)}
    mildest = next((rows for rows, size in held.items() if size <= room), 1)
    told = f"sft.per_device_train_batch_size={mildest} sft.gradient_accumulation_steps={8 // mildest}"
    assert found[told] == held[mildest]


def _with_rows(forecast: Forecast, rows: int) -> Recipe:
    recipe = with_value(forecast.recipe, "sft.per_device_train_batch_size", rows)
    return with_value(recipe, "sft.gradient_accumulation_steps", 8 // rows)


@pytest.mark.slow
def test_shorter_rows_are_planned_as_a_recipe_with_them_is(recipe: Path) -> None:
    """`max_length` and `context_length` cut the longest row, as the measuring of the changed recipe does."""
    forecast = Forecast(load_recipe(recipe), "cuda")
    longest = forecast.stage(forecast.recipe, "sft").rows["demonstrations"].longest
    shorter = forecast.stage(with_value(forecast.recipe, "sft.max_length", longest - 1), "sft")
    assert shorter.rows["demonstrations"].longest == longest - 1
    again = Forecast(load_recipe(recipe, [f"sft.max_length={longest - 1}"]), "cuda")  # numbers of one figure fit
    assert again.stage(again.recipe, "sft").rows["demonstrations"].longest == longest - 2
    with pytest.raises(DataError, match="No demonstration fits into 5 tokens"):
        Forecast(load_recipe(recipe, ["sft.max_length=5"]), "cuda")
    context = forecast.stage(with_value(forecast.recipe, "model.context_length", 12), "ppo")
    assert context.rows["prompts"].longest == 4  # 12 less a response of 8


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_is_planned_on_a_cpu(recipe: Path, quantization: str) -> None:
    """While PPO samples, a copy of the quantised weights holds them whole, with the adapter: exact from NF4 alone."""
    forecast = Forecast(load_recipe(recipe, [f"model.quantization={quantization}"]), "cpu")
    steps = forecast.stage(forecast.recipe, "ppo").memory
    assert steps["sampling, last token"]["base"] > 0
    assert steps["sampling, last token"]["merged weights"] > steps["sampling, last token"]["base"] / 2
    assert "merged weights" not in steps["update"]


@pytest.mark.slow
def test_on_cuda_what_is_compiled_and_copied_stays_for_the_run_and_only_where_there_is_room(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["ppo.total_episodes=4000"])  # 1,000 rollouts of 8 steps
    ample = Forecast(loaded, "cuda").stage(loaded, "ppo").memory
    merged, cache = (ample["sampling, last token"][kind] for kind in ("merged weights", "KV cache"))
    assert ample["update"]["merged weights"] == merged
    assert ample["update"]["KV cache"] == cache  # of 64 + 8 tokens
    short = Forecast(load_recipe(recipe), "cuda")
    assert short.stage(short.recipe, "ppo").memory["sampling, last token"]["KV cache"] < cache / 2
    own = ample["update"]["base"] + ample["update"]["adapters"]
    tight = Forecast(loaded, "cuda", there=own + 2 * merged).stage(loaded, "ppo").memory
    assert "merged weights" not in tight["update"]


@pytest.mark.slow
def test_vllm_takes_its_share_of_the_gpu_asleep_only_while_it_samples(recipe: Path) -> None:
    def planned(*more: str, there: int | None = 2**30, device: str = "cuda") -> StagePlan:
        loaded = load_recipe(recipe, ["ppo.use_vllm=true", "ppo.vllm_gpu_memory_utilization=0.25", *more])
        return Forecast(loaded, device, there).stage(loaded, "ppo")

    awake, asleep, unknown = planned(), planned("ppo.vllm_enable_sleep_mode=true"), planned(there=None)
    share = 2**28
    assert all(step["vLLM"] == share for step in awake.memory.values())
    assert {name for name, step in asleep.memory.items() if "vLLM" in step} == {"sampling by vLLM"}
    sampling = asleep.memory["sampling by vLLM"]
    assert sampling["vLLM"] == share
    assert sampling["base"] == asleep.memory["update"]["base"]
    assert sampling["optimizer"] == asleep.memory["update"]["optimizer"]
    assert {name: sum(step.values()) - share for name, step in awake.memory.items()} == {
        name: sum(step.values()) for name, step in unknown.memory.items()
    }  # and no replies are sampled by the trainer, in evaluation neither
    assert unknown.memory.keys() == asleep.memory.keys() - {"sampling by vLLM"}
    assert not any("sampling" in name or name == "evaluation" for name in unknown.memory)
    assert "with --memory it is" in unknown.notes[-1]
    assert "its context and graphs" in asleep.notes[-1]
    for others in (planned("ppo.vllm_mode=server"), planned(device="cpu")):
        assert not any("vLLM" in step for step in others.memory.values())
    loaded = load_recipe(recipe, ["ppo.use_vllm=true"])
    forecast = Forecast(loaded, "cuda", 2**22)  # whose share is less than the update takes beside the weights
    whole = forecast.stage(loaded, "ppo")
    found = remedies(forecast, whole, 0)
    assert {"ppo.vllm_enable_sleep_mode": True} in [remedy.changes for remedy in found]


@pytest.mark.slow
def test_where_the_evaluation_compiles_its_cache_stays(recipe: Path) -> None:
    of = {}
    for decoding in ("plain", "compiled"):
        forecast = Forecast(load_recipe(recipe, [f"evaluate.decoding={decoding}"]), "cuda")
        of[decoding] = forecast.stage(forecast.recipe, "evaluate").memory
    cache = of["compiled"]["sampling, last token"]["KV cache"]
    assert cache > of["plain"]["sampling, last token"]["KV cache"]
    after = [name for name in of["plain"] if not name.startswith("sampling")]
    assert after
    assert all("KV cache" not in of["plain"][name] for name in after)
    assert all(of["compiled"][name]["KV cache"] == cache for name in after)


@pytest.mark.slow
def test_auto_is_bfloat16_for_a_gpu_that_is_not_here(recipe: Path) -> None:
    planned = [asked(str(recipe), "--device", "cuda", "--json", *more) for more in ([], ["model.dtype=float32"])]
    with meant_for("cuda"):
        assert load_recipe(recipe).model.dtype == "bfloat16"
        assert load_recipe(recipe, ["model.dtype=float32"]).model.dtype == "float32"
    assert load_recipe(recipe).model.dtype == "float32"
    stages = [json.loads(result.stdout.splitlines()[-1])["stages"] for result in planned]
    base, in_float32 = (found["sft"]["memory"]["steps"]["update"]["base"] for found in stages)
    assert base < 0.7 * in_float32


def test_a_base_that_is_not_here(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = asked(str(recipe), "model.base=nobody/nothing")
    assert result.exit_code == 2
    assert "'nobody/nothing' is no folder here and not in the hub's cache" in result.stderr
    assert "fetch it first (hf download)" in result.stderr


@pytest.mark.parametrize(
    ("told", "count"), [("24GiB", 24 * 2**30), ("24 GB", 24 * 2**30), ("1.5", 3 * 2**29), ("800m", 800 * 2**20)]
)
def test_memory_as_it_is_written(told: str, count: int) -> None:
    assert memory_bytes(told) == count


@pytest.mark.parametrize(("option", "value"), [("--device", "tpu"), ("--memory", "0"), ("--memory", "24TB")])
def test_wrong_options_are_refused(option: str, value: str) -> None:
    result = asked("none.yaml", option, value)
    assert result.exit_code == 2
    assert f"{option} is" in result.stderr


def test_a_recipe_that_is_not_there() -> None:
    result = asked("none.yaml")
    assert result.exit_code == 2
    assert "There is no recipe at none.yaml" in result.stderr


MIB = 2**20
PLAN = StagePlan("sft", memory={"update": {"base": 100 * MIB, "activations": 300 * MIB}, "merging": {"base": MIB}})


def test_the_largest_step_and_where_it_goes() -> None:
    assert PLAN.largest == "update"
    assert PLAN.bytes == 400 * MIB
    assert where(PLAN) == "update: activations 0.3 GiB, base 100 MiB"
    assert size(102 * MIB) == "102 MiB"
    assert size(103 * MIB) == "0.1 GiB"
    plans = [PLAN, StagePlan("world")]
    told = lines(plans, 100 * MIB, 1024 * MIB, "cpu")
    assert told[-2].startswith("At most 0.5 GiB of the machine (sft)")
    assert told[-1] == "It fits into 1.0 GiB: 0.5 GiB are left."
    assert "Less than a tenth is left" in lines(plans, 100 * MIB, 510 * MIB, "cpu")[-1]
    assert "fits" not in "".join(lines(plans, 100 * MIB, 400 * MIB, "cpu"))
    assert lines(plans, 0, None, "cuda")[-1].startswith("With --memory")


def test_what_does_not_fit_names_what_each_key_would_give() -> None:
    """The process takes 20 MiB: of 256, 200 + 20 fit, and 290 + 20 are 54 too many."""
    found = [Remedy({"sft.gradient_checkpointing": True}, 200 * MIB), Remedy({"sft.max_length": 512}, 290 * MIB)]
    told = advice(PLAN, 20 * MIB, 256 * MIB, found)
    assert told == [
        "sft does not fit: 0.4 GiB at its largest step (update), 0.2 GiB too much.",
        "  sft.gradient_checkpointing=true   0.2 GiB  fits",
        "  sft.max_length=512                0.3 GiB  still 54 MiB too much",
    ]
    together = advice(PLAN, 0, 100 * MIB, [*found, Remedy({"sft.max_length": 512}, 90 * MIB, together=True)])
    assert together[-1].split() == ["all", "of", "these", "together", "90", "MiB", "fits"]
    assert "take a smaller base" in advice(PLAN, 0, 10 * MIB, [])[-1]
    assert refusal([PLAN], 0, 256 * MIB).startswith("Recipe section 'sft' (0.4 GiB) would not fit into 0.2 GiB.")
    assert "sections 'sft' (0.4 GiB), 'sft' (0.4 GiB)" in refusal([PLAN, PLAN], 0, 256 * MIB)
