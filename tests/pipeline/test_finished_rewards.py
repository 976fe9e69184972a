"""PPO against what was not trained in the run: a finished reward model, or functions alone."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from llm_rlhf import RewardModel
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe

FUNCTION = "def brevity(completions, **kwargs):\n    return [-float(len(c[0]['content'])) for c in completions]\n"


def prompts(path: Path, words: str, n: int) -> str:
    rows = ({"prompt": f"{words} {i}?", "objective": ("helpful", "harmless")[i % 2]} for i in range(n))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def ran(base_folder, tmp_path, monkeypatch):
    """Run PPO and an evaluation on a chat model as it is: without demonstrations or pairs of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(FUNCTION)

    def run(reward: dict | None, **ppo) -> Path:
        tree = {
            "name": "finished",
            "model": {"base": str(base_folder), "lora": {"r": 2, "alpha": 4}},
            "data": {
                "prompts": {"source": prompts(tmp_path / "p.jsonl", "tell me of thing number", 40)},
                "evaluation_prompts": {"source": prompts(tmp_path / "e.jsonl", "what is it you want, sir", 24)},
                "near_duplicates": None,
            },
            "reward": reward,
            "ppo": {"total_episodes": 32, "per_device_train_batch_size": 16, "response_length": 8,
                    "gradient_checkpointing": False, "learning_rate": 1e-3, **ppo},
            "evaluate": {"prompts": 24, "resamples": 100, "samples": 2, "suites": ["overoptimization"],
                         "snapshot_prompts": 20, "best_of_n": 2},
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({k: v for k, v in tree.items() if v is not None}))
        return run_recipe(load_recipe(tmp_path / "recipe.yaml")).path

    return run


def report_of(run: Path) -> dict:
    return json.loads((run / "report.json").read_text())


@pytest.fixture(scope="session")
def whole_folder(tmp_path_factory, base_folder) -> Path:
    """A reward model of another width, with a base and a head of its own."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_a_finished_reward_model_trains_the_policy_and_is_read_and_named(
    ran, whole_folder, reward_folder, kind
) -> None:
    model = whole_folder if kind == "whole" else reward_folder
    run = ran({"model": str(model)})
    known = json.loads((run / "reward" / "model.json").read_text())
    assert known["model"] == str(model)
    assert known["weights"]
    assert {path.name for path in (run / "reward").iterdir()} == {"model.json", "manifest.json"}
    report = report_of(run)
    assert report["provenance"]["instruments"]["reward"]["model"] == str(model)
    assert "heldout" not in report["provenance"]["instruments"]
    assert any(str(model) in line and "did not train" in line for line in report["alarms"])
    assert {"reward_gain", "kl"} <= {entry["name"] for entry in report["estimates"]}
    assert len(report["overoptimization"]["points"]) == 3  # the start, and a snapshot a rollout
    if kind == "whole":  # it reads text, and whole turns alone: PPO was paid what it says of them by itself
        samples = [json.loads(line) for line in (run / "ppo" / "samples.jsonl").read_text().splitlines()]
        said = [(row["prompt"], row["response"][0]["content"]) for row in samples]
        by_itself = RewardModel.from_pretrained(model).score(said)
        assert by_itself.tolist() == pytest.approx(
            [row["score"] for row in samples], abs=1e-4
        )  # float32, other batches


@pytest.mark.slow
def test_functions_alone_reward_and_no_reward_model_is_shown(ran) -> None:
    run = ran(None, reward_funcs=["rewards:brevity"])
    assert not (run / "reward").exists()
    report = report_of(run)
    assert any("rewards:brevity alone; no training reward" in line for line in report["alarms"])
    assert "reward" not in report["provenance"]["instruments"]
    assert report["overoptimization"] is None
    assert {"kl"} <= {entry["name"] for entry in report["estimates"]}
    samples = [json.loads(line) for line in (run / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert all(s["score"] == -len(s["response"][0]["content"]) for s in samples)
