"""`llm-rlhf data check` and `data show` as a user meets them."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from template_helpers import stand_in
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from llm_rlhf.cli.data import data_app
from llm_rlhf.models.encoding import encode_reply

LONG = "How do I get red wine out of a white wool carpet without calling a cleaner?"


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "chosen": f"good {i}", "rejected": "bad"} for i, prompt in enumerate(prompts)]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(data_app, list(arguments))


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows = [*pairs("One?", "Two?", LONG), {"prompt": "Equal?", "chosen": "x", "rejected": "x"}, {"prompt": "Half?"}]
    return write(tmp_path / "pairs.jsonl", rows)


def test_check_accounts_for_every_row(source: str, tmp_path: Path) -> None:
    result = run("check", source, "--json", "--output", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    reading = report["reading"]["preferences"]
    assert (reading["read"], reading["kept"]) == (5, 3)
    assert reading["set_aside"]["chosen equals rejected"] == 1
    assert report["lists"]["preferences"]["rows"] == 3
    assert json.loads((tmp_path / "out" / "check.json").read_text()) == report
    quarantine = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in quarantine] == [4, 5]
    text = run("check", source).stdout
    assert "chosen equals rejected   (row 4)" in text
    assert "40% of the rows read for preferences are set aside" in text


def test_check_names_the_columns_that_nothing_reads_and_takes_other_names(tmp_path: Path) -> None:
    path = write(
        tmp_path / "goals.jsonl", [{"Aim": "One?", "id\x1b[2J": 1, "note": "x"}, {"Aim": "Two?", "note": None}]
    )
    text = run("check", path, "--columns", "prompt=Aim").stdout
    assert "  columns that nothing reads: id\\x1b[2J (1), note (1)\n" in text
    report = json.loads(run("check", path, "--columns", "prompt=Aim", "--json").stdout)
    assert report["reading"]["prompts"]["unread"] == {path: {"id\x1b[2J": 1, "note": 1}}
    assert "One?" in run("show", path, "--columns", "prompt=Aim", "--row", "1").stdout
    absent = run("check", path, "--columns", "prompt=aim")
    assert "Did you mean 'Aim'?" in absent.stderr
    for wrong, said in (("promt=Aim", "Did you mean 'prompt'?"), ("prompt", "--columns prompt=goal")):
        refused = run("check", path, "--columns", wrong)
        assert (refused.exit_code, said in refused.stderr) == (2, True)


def test_check_names_columns_by_file_where_there_are_several(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", [{"prompt": name, name: 1}]) for name in ("one", "two")]
    text = run("check", *paths).stdout
    assert "columns that nothing reads of one.jsonl: one (1)\n" in text
    assert "columns that nothing reads of two.jsonl: two (1)\n" in text


def test_show_marks_what_is_imitated_of_a_talk_with_weights_and_thoughts(tmp_path: Path, base_folder: Path) -> None:
    talk = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "wrong", "weight": 0},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "right", "reasoning": "Hm."},
    ]
    path = write(tmp_path / "talks.jsonl", [{"messages": talk}])
    assert "assistant  (thinks: Hm.)\n           right\n" in run("show", path).stdout
    shown = run("show", path, "--model", str(base_folder)).stdout
    assert "«<|assistant|>»|w|r|o|n|g" in shown
    assert "[[|<|t|h|i|n|k|>|⏎\n|H|m|.|⏎\n|<|/|t|h|i|n|k|>|⏎\n|⏎\n|r|i|g|h|t|«<|eos|>»]]" in shown
    assert shown.count("[[|") == 1


def test_check_measures_tokens_against_the_limit(source: str, base_folder: Path) -> None:
    """Every byte is a token: <|user|> + prompt + <|assistant|> + reply + <|eos|>."""
    result = run("check", source, "--model", str(base_folder), "--max-length", "40", "--json")
    (lengths,) = json.loads(result.stdout)["lengths"]
    assert lengths["tokens"]["max"] == 3 + len(LONG) + len("good 2")
    assert (lengths["limit"], lengths["cut"], lengths["too_long"]) == (40, 0, 1)


def test_a_leak_is_exit_code_1_and_a_near_one_is_said(source: str, tmp_path: Path) -> None:
    exact = run("check", source, "--against", write(tmp_path / "test.jsonl", pairs("two?")), "--json")
    assert exact.exit_code == 1
    shared = json.loads(exact.stdout)["shared"]
    assert [row["row"] for row in shared["same_prompt"]["first"]] == [2]
    near = run("check", source, "--against", write(tmp_path / "near.jsonl", pairs(LONG.replace("wool", "pool"))))
    assert near.exit_code == 0
    assert "1 row to train on ask nearly what evaluation asks" in near.stdout
    assert run("check", source, "--against", write(tmp_path / "other.jsonl", pairs("Else?"))).exit_code == 0


def test_exit_codes_of_what_cannot_be_read(tmp_path: Path) -> None:
    assert run("check", str(tmp_path / "missing.jsonl")).exit_code == 2
    assert run("check").exit_code == 2
    assert run("check", "x", "--recipe", "y").exit_code == 2
    equal = write(tmp_path / "equal.jsonl", [{"prompt": "a", "chosen": "x", "rejected": "x"}])
    nothing = run("check", equal)
    assert nothing.exit_code == 1
    assert "Nothing is left" in nothing.stderr


def test_check_of_a_recipe_names_the_keys_that_limit(tmp_path: Path, base_folder: Path) -> None:
    train = write(tmp_path / "train.jsonl", pairs(*(f"Question {i}?" for i in range(40)), LONG))
    test = write(tmp_path / "test.jsonl", pairs("Question 7?"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: x\nmodel: {{base: {base_folder}}}\n"
        f"data: {{preferences: [{{source: {train}}}], evaluation_preferences: [{{source: {test}}}]}}\n"
        "reward: {max_length: 50}\n",
        encoding="utf-8",
    )
    result = run("check", "--recipe", str(recipe), "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1, "the run would stop at this leak"
    assert report["shared"]["same_prompt"]["count"] >= 1
    limits = {lengths["what"]: (lengths["limit_name"], lengths["limit"]) for lengths in report["lengths"]}
    assert limits["reward_pairs"] == ("reward.max_length", 50)
    assert sum(report["splits"][name] for name in ("reward_pairs", "heldout_pairs")) == 41
    recipe.write_text(recipe.read_text().replace("]}\n", "], leaks: remove}\n", 1))
    assert run("check", "--recipe", str(recipe)).exit_code == 0


def test_show_marks_the_loss_and_the_score(source: str, base_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    sft = run("show", source, "--row", "1", "--model", str(base_folder), "--stage", "sft").stdout
    assert "|«<|user|>»|O|n|e|?|«<|assistant|>»[[|g|o|o|d" in sft
    assert "|0|«<|eos|>»]]" in sft
    reward = run("show", source, "--row", "1", "--model", str(base_folder)).stdout
    assert reward.count("[score |«<|eos|>»]") == 2
    encoded = encode_reply(tokenizer, [{"role": "user", "content": "One?"}], "good 0")
    assert f"chosen: {len(encoded.prompt_ids)} tokens of prompt and {len(encoded.reply_ids)} of reply" in reward
    ppo = run("show", source, "--row", "1", "--model", str(base_folder), "--stage", "ppo").stdout
    assert ppo.partition("\n\nCount what is in them: ")[0].rstrip().endswith("[[generation starts here]]")


def test_check_and_show_say_what_the_template_does_to_thoughts_and_history(tmp_path: Path) -> None:
    model = tmp_path / "model"
    stand_in("qwen3_5").save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')
    talk = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1", "reasoning_content": "counting"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "<think>more</think>2"},
    ]
    talks = write(tmp_path / "talks.jsonl", [{"messages": talk}])
    told = run("check", talks, "--model", str(model)).output
    assert "history: rewritten" in told
    assert "the generation prompt: opens a thought with <think>" in told
    assert "in 1 rows replies begin with thoughts, which are trained on." in told
    assert "1 conversations are 2 examples, as the template rewrites earlier turns once others follow." in told
    shown = run("show", talks, "--model", str(model)).output
    assert "(example 2 of 2: the template rewrites earlier turns)" in shown
    pair = {"prompt": "One?", "chosen": "<think>well</think>yes", "rejected": "no"}
    told = run("check", write(tmp_path / "pairs.jsonl", [pair]), "--model", str(model)).output
    assert "in 1 rows replies begin with thoughts, which are left out: nobody reads them." in told


def test_check_says_that_judged_replies_would_all_be_imitated(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response": f"a{i}", "Score": i, "id": i} for i in range(2)]
    told = run("check", write(tmp_path / "scored.jsonl", rows), "--as", "demonstrations").output
    assert "the column Score may say how good a reply is, and nothing reads it" in told
    plain = [{"prompt": f"q{i}", "response": f"a{i}", "id": i} for i in range(2)]
    assert "Nothing notable" in run("check", write(tmp_path / "plain.jsonl", plain)).output


def test_show_without_a_model_names_rows_set_aside_and_missing_ones(source: str) -> None:
    shown = run("show", source, "--rows", "2,4").stdout
    assert "    user  Two?\n  chosen  good 1\nrejected  bad\n" in shown
    assert "set aside: chosen equals rejected" in shown
    assert run("show", source, "--rows", "77").exit_code == 1
    assert run("show", source, "--rows", "3-1").exit_code == 2


def test_escapes_in_the_data_do_not_reach_the_terminal(tmp_path: Path, base_folder: Path) -> None:
    evil = "a\x1b[2Jb\u202ec\u200bd\x07"
    source = write(tmp_path / "evil.jsonl", [{"prompt": evil, "chosen": evil, "rejected": "x"}])
    for extra in ([], ["--model", str(base_folder)]):
        shown = run("show", source, "--row", "1", *extra).stdout
        assert not set(shown) & set("\x1b\u202e\u200b\x07")
        assert "\\x1b" in shown


@pytest.fixture
def world_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "template.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (tmp_path / "world.yaml").write_text(
        "name: small\nworld: {entities: 3, demonstrations: 40, preferences: 60, prompts: 40, evaluation_prompts: 12}\n"
        "model: {chat_template: template.jinja}\nsft: {max_steps: 1}\nreward: {max_steps: 1}\n"
        "ppo: {total_episodes: 16}\n"
    )
    return "world.yaml"


def test_check_of_a_world_reads_what_its_run_would_make(world_recipe: str, tmp_path: Path) -> None:
    result = run("check", "--recipe", world_recipe, "--json", "--output", "out")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    read = {name: counts["read"] for name, counts in report["reading"].items()}
    assert read == {"preferences": 60, "demonstrations": 40, "prompts": 40, "evaluation_prompts": 12}
    splits = report["splits"]
    assert splits["reward_pairs"] + splits["heldout_pairs"] + splits["evaluation_pairs"] == 60
    assert {lengths["limit_name"] for lengths in report["lengths"]} >= {"the model's context"}  # no key sets it
    assert f"{tempfile.gettempdir()}/" not in result.stdout  # rows are named as in a run
    assert Path.cwd() == tmp_path
    assert (tmp_path / "out" / "check.json").is_file()
    text = run("check", "--recipe", world_recipe).stdout
    assert text.endswith(f"Run it: llm-rlhf run {world_recipe}\n")


def test_rows_of_a_world_are_shown_and_others_by_its_model(world_recipe: str, source: str) -> None:
    text = run("show", "--recipe", world_recipe, "--rows", "1").stdout
    assert "--- world/preferences.jsonl, row 1" in text
    assert "tokens of prompt" in text
    assert run("show", Path(source).name, "--recipe", world_recipe, "--rows", "1").exit_code == 0


def test_a_world_recipe_with_a_mistake_is_still_a_wrong_request(world_recipe: str) -> None:
    path = Path(world_recipe)
    path.write_text(path.read_text().replace("entities: 3", "entities: 30"))
    result = run("check", "--recipe", world_recipe)
    assert (result.exit_code, "world.entities" in result.stderr) == (2, True)
