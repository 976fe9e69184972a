"""Tokens, keys and passwords: refused in recipes, and cut out of whatever leaves a process nevertheless."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from chain_helpers import TINY, write_recipe
from test_requests import ask, refused

from llm_rlhf.errors import DataError, RecipeError, RunError
from llm_rlhf.evaluation.endpoints import Endpoint
from llm_rlhf.recipe.loading import load_recipe, recipe_of
from llm_rlhf.redaction import MARK, found_in, redacted, redacted_tree
from llm_rlhf.run_folder import RunFolder, differences, write_json

HUB, AWS, GITHUB = "hf_" + "Ab3" * 11, "AKIA" + "ABCD1234" * 2, "ghp_" + "a1" * 18
WANDB, PASSWORD = "0f9e" * 10, "correct-horse-battery"  # of no form that could be told from a commit, or from a name
SECRETS = {
    "of the hub": HUB,
    "of OpenAI": "sk-" + "a1B2" * 12,
    "of an OpenAI project": "sk-proj-" + "a1_-" * 10,
    "of Anthropic": "sk-ant-api03-" + "a1B2" * 10,
    "of GitHub": GITHUB,
    "of AWS": AWS,
    "of a header": "Bearer " + "a1b2" * 6,
    "in an address": "https://user:pass@example.org/rows.jsonl",
    "in an address by itself": "https://me:p%40ss@example.org",
    "as a query": "http://example.org/v1?api_key=abc123def#judge",
    "of wandb": "wandb_v1_" + "a1" * 20,
    "of JSON Web": "eyJhbGciOiJI." + "eyJzdWIiOiIx." + "SflKxwRJSMeKKF",
    "of a database": "postgresql+psycopg://user:word@db/runs",
    "under its variable": "HF_TOKEN=abcdefgh",
}
HONEST = (
    "Qwen/Qwen2.5-0.5B", "0" * 40, "a3f1" * 10, "a3f1" * 16, "runs/sk-learn-model-with-a-long-name-v2", "hf_transfer",
    "s3://bucket/data/train.jsonl", "http://localhost:8000/v1#Qwen/Qwen2.5@main", "https://host:8443/v1#model@rev",
    "the bearer of bad news arrived yesterday", "data/token_counts.jsonl", "<|eos_token|>", "AKIRA-7B", "sk-1",
    "meta-llama/Llama-3.1-8B-Instruct", "models--a--b/snapshots/0123456789abcdef0123456789abcdef01234567",
    "people:verdicts.jsonl", "JUDGE_API_KEY", "git+ssh://git@github.com/a/b", "tokenizer.json", "password manager",
    "task-oriented-dialogue-dataset-0123456789", "risk-0123456789abcdef0123456789", "my.module:reward_of_token",
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_API_KEY": WANDB, "MLFLOW_TRACKING_PASSWORD": PASSWORD, "HF_TOKEN_PATH": "/tmp"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("secret", [*SECRETS.values(), WANDB, PASSWORD], ids=[*SECRETS, "a key", "a password"])
def test_fault_58_a_secret_is_known_by_its_form_or_by_the_environment(secret) -> None:
    assert MARK in redacted(f"the value {secret} there", keyed=True)
    assert [found.key for found in found_in({"data": {"prompts": [{"source": secret}]}})] == ["data.prompts.0.source"]


@pytest.mark.parametrize("text", HONEST)
def test_fault_58_what_is_no_secret_stays(text) -> None:
    assert redacted(text, keyed=True) == text
    assert list(found_in({"model": {"base": text}})) == []


ENDLESS = "-----BEGIN PRIVATE KEY-----\nMIIBVQ== is how it begins"


@pytest.mark.parametrize("said", ['see http://h/?token=abcdefgh"quoted"', ENDLESS, f'{ENDLESS}"', f"\n{HUB}", PASSWORD])
def test_fault_58_json_stays_json_whatever_is_cut_out_of_it(tmp_path, said) -> None:
    write_json(tmp_path / "a.json", {"a": [said], "b": 1})
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["b"] == 1
    assert MARK in found["a"][0]
    printed = json.loads(redacted(json.dumps({"a": [said], "b": 1})))  # as on the screen
    assert printed["b"] == 1


def test_fault_58_a_mark_stands_in_place_of_the_secret_alone() -> None:
    assert redacted(f"a {HUB} b https://user:pass@host/x") == f"a {MARK} b https://{MARK}@host/x"
    assert redacted_tree({"sft": {"hub_token": "x", "eos_token": "</s>"}, "l": [HUB, 1]}) == {
        "sft": {"hub_token": MARK, "eos_token": "</s>"},
        "l": [MARK, 1],
    }


@pytest.mark.parametrize(
    ("override", "key", "remedy"),
    [
        ("sft.hub_token=zyxy", "sft.hub_token", "HF_TOKEN"),
        ("ppo.hub_token=plain", "ppo.hub_token", "HF_TOKEN"),
        ("ppo.password=123456789", "ppo.password", "environment"),
        (f"0={GITHUB}", "0", "environment"),
        (f"evaluate.judge_key_variable={SECRETS['of OpenAI']}", "evaluate.judge_key_variable", "--key-variable"),
        ("evaluate.judge=http://h/v1?api_key=abc123def#m", "evaluate.judge", "--key-variable"),
        (f"evaluate.judge=http://user:{PASSWORD}@h/v1#m", "evaluate.judge", "--key-variable"),
        (f"name={HUB}", "name", "HF_TOKEN"),
        (f"report_to=[{WANDB}]", "report_to.0", "environment"),
        (f"model.chat_template_kwargs.{GITHUB}=1", "the name of model.chat_template_kwargs.[redacted]", "environment"),
    ],
)
def test_fault_58_a_recipe_with_a_secret_is_refused_by_its_key(tmp_path, override, key, remedy) -> None:
    path = write_recipe(tmp_path)
    done = ask("run", str(path), override)
    refused(done, f"'{key}'", "not shown", remedy)
    value = override.partition("=")[2]
    assert value not in done.output
    assert PASSWORD not in done.output
    assert not (tmp_path / "runs").exists()


def test_fault_58_a_file_with_a_secret_is_refused_too_also_where_it_is_no_yaml(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    for text, words in (
        (f"name: a\nsft: {{hub_token: {HUB}}}", "sft.hub_token"),
        (f"name: [{HUB}\n: - x", "plain YAML"),
    ):
        path.write_text(text)
        done = ask("run", str(path))
        refused(done, words)
        assert HUB not in done.output


def test_fault_58_a_variable_that_is_called_a_key_and_holds_a_word_is_none(monkeypatch) -> None:
    monkeypatch.setenv("SORT_KEY", "conversation_id")
    monkeypatch.setenv("JUDGE_KEY", "a-judges-key-0")
    assert redacted("conversation_id a-judges-key-0") == f"conversation_id {MARK}"


@pytest.mark.parametrize("pasted", ["a1b2c3d4-e5f6-4711", "0f9e" * 10, "f9e0" * 10, "my key", ""])
def test_fault_58_a_key_in_the_place_of_its_variables_name_is_not_shown(pasted) -> None:
    with pytest.raises(RecipeError, match="may be the key itself") as error:
        Endpoint("http://localhost:1/v1", "m", pasted)
    assert not pasted or pasted not in str(error.value)


def test_fault_58_no_error_quotes_a_secret() -> None:
    for kind in (RecipeError, DataError, RunError):
        assert str(kind(f"the key 'hub_token: abcdefgh' and {HUB}")) == f"the key 'hub_token: {MARK}' and {MARK}"


def test_fault_58_what_changed_is_told_without_it(tmp_path) -> None:
    """A folder that an older version made may hold one."""
    (change,) = differences({"sft": {"hub_token": HUB}}, {"sft": {}})
    assert HUB in change, "what is compared is not touched"
    assert HUB not in str(RecipeError(change))


def test_fault_58_a_recipe_that_was_made_in_python_leaves_no_secret_in_the_run_folder(tmp_path) -> None:
    run = RunFolder(tmp_path / "run")
    inputs = {"sft": {"hub_token": "plain-word", "run_name": HUB}}
    run.describe({"name": "a", **inputs})
    with run.making("sft", inputs) as folder:
        (folder / "weights").write_text("w")
    texts = [path.read_text() for path in run.path.rglob("*") if path.is_file()]
    assert not [text for text in texts if HUB in text or "plain-word" in text]
    assert run.finished("sft", inputs), "the same recipe is the same still"


@pytest.mark.slow
def test_fault_58_a_whole_chain_leaves_no_secret_of_the_environment_anywhere(tmp_path) -> None:
    """With a tracker, an export and its card; everything that was written or said is searched."""
    canaries = {
        "HF_TOKEN": HUB, "WANDB_API_KEY": WANDB, "OPENAI_API_KEY": SECRETS["of OpenAI"], "AWS_ACCESS_KEY_ID": AWS,
        "MLFLOW_TRACKING_PASSWORD": PASSWORD, "JUDGE_TOKEN": "judge-token-canary",
    }  # fmt: skip
    environment = {**os.environ, **canaries, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "report_to": ["tensorboard"]}))
    said = b""
    for arguments in (["run", "tiny.yaml"], ["export", "runs/tiny"], ["doctor"], ["plan", "tiny.yaml"]):
        done = subprocess.run(
            [sys.executable, "-m", "llm_rlhf", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            timeout=600,
        )
        said += done.stdout + done.stderr
        assert done.returncode == 0 or arguments == ["doctor"], done.stderr.decode()[-2000:]
    texts = {"what was said": said} | {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(texts) > 50
    leaks = [(place, name) for place, text in texts.items() for name, v in canaries.items() if v.encode() in text]
    assert leaks == []


def test_a_recipe_of_honest_names_loads(tmp_path) -> None:
    path = write_recipe(tmp_path)
    recipe = load_recipe(path, ["name=a3f1c0de" + "0" * 32, "sft.run_name=hf_transfer-sk-learn", "ppo.hub_token=null"])
    assert recipe.name.startswith("a3f1")
    assert json.dumps(recipe.as_dict())


def test_fault_58_a_run_that_an_older_version_made_with_one_is_looked_at_without_it(tmp_path, capsys) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    write_recipe(tmp_path, ppo={**TINY["ppo"], "hub_token": HUB}).rename(folder / "recipe.yaml")
    (folder / "manifest.json").write_text("{}")
    assert recipe_of(folder).ppo["hub_token"] == MARK
    said = capsys.readouterr().err
    assert "ppo.hub_token" in said
    assert HUB not in said
    refused(ask("run", str(folder / "recipe.yaml")), "ppo.hub_token")
