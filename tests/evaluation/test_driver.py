"""The one driver of evaluations: what is asked for, what is read, who scores it; on tiny random models, by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import grown_adapter, own_tokens, random_policy_adapter, random_reward_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Origin, Preference, Prompt
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.ask import Base, ask
from llm_rlhf.evaluation.evaluate import measure
from llm_rlhf.evaluation.material import OWN, REFUSALS, Material, check_section, gather, reference_of
from llm_rlhf.evaluation.report.assembly import archive_report, check_output
from llm_rlhf.evaluation.request import Both, Evaluation
from llm_rlhf.evaluation.reward_evaluation import preferences
from llm_rlhf.evaluation.rewards import MOVED, ByItself, OnTheBase, Rewards, score
from llm_rlhf.evaluation.subjects import Subject
from llm_rlhf.evaluation.suites.snapshot_curve import snapshot_curve, snapshot_folders
from llm_rlhf.models import reply_decoding
from llm_rlhf.models.base import load_tokenizer
from llm_rlhf.models.encoding import encode_prompt
from llm_rlhf.models.inference import Reply, load_roles
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import ModelSection, Source
from llm_rlhf.reward.model import RewardModel


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base_folder) -> Path:
    return random_policy_adapter(base_folder, tmp_path_factory.mktemp("adapter"), seed=3, r=2)


@pytest.fixture
def how(base_folder) -> ModelSection:
    return ModelSection(base=str(base_folder))


@pytest.fixture
def asked(how, adapter, tmp_path) -> Evaluation:
    """An adapter against its base, on six prompts."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"word {i}?"}) + "\n" for i in range(6)))
    return Evaluation(Subject("tuned", how, adapter), Subject("begin", how), tmp_path / "out",
                      prompts=[Source(source=str(path))], response_length=6, refusals=False)  # fmt: skip


# ---- how replies are decoded


def test_what_is_foreseen_of_each_policy_is_what_it_is_asked(asked, how, adapter, tmp_path, monkeypatch) -> None:
    """Lists of 6 and 3 prompts; 5 prompts, and 4 replies more to each, are asked of the snapshots' origin."""
    rows = [Prompt([{"role": "user", "content": f"word {i}?"}], "overall", Origin("x", i)) for i in range(6)]
    material = Material({OWN: rows, REFUSALS: rows[:3]})
    asked = replace(asked, batch_size=2, snapshot_prompts=5, best_of_n=4)
    asked.snapshots = {4: adapter}
    base = Base(asked, asked.local, Rewards({"reward": [], "heldout": []}, how))
    base.foresee(material)
    steps = {role: 6 * batches for role, batches in {("default",): 3 + 2, (): 3 + 2 + 3 + 10}.items()}
    assert dict(base.decoding._ahead) == steps  # of replies of 6 tokens


def test_decoding_that_must_be_compiled_and_cannot_be_is_refused(asked, how, monkeypatch) -> None:
    monkeypatch.setattr(reply_decoding, "can_compile", lambda _: False)
    rewards = Rewards({"reward": [], "heldout": []}, how)
    assert Base(asked, asked.local, rewards).decoding.how == "auto"
    asked.decoding_step = "compiled"
    with pytest.raises(RecipeError, match="--decoding cannot be carried out: decoding is 'compiled', but Llama"):
        Base(asked, asked.local, rewards)


@pytest.mark.slow
def test_how_replies_were_decoded_is_told(asked, how, traced) -> None:
    found = {}
    for decoding in ("plain", "compiled"):
        measured = measure(replace(asked, decoding_step=decoding, output=asked.output / decoding))
        found[decoding] = [given.texts for given in measured.answers[OWN].values()]
        assert measured.computed["decoding"] == decoding
        assert measured.computed["attention"] == "sdpa"
    assert measured.computed["sampled_from"] == "the base alone and weights merged"
    assert found["plain"] == found["compiled"]
    kept = measure(replace(asked, decoding_step="plain", output=asked.output / "compiled"))
    assert kept.computed == {"attention": "sdpa"}, "nothing was sampled: the replies are in the cache"
    assert [given.texts for given in kept.answers[OWN].values()] == found["plain"]


# ---- what is asked for


def test_one_base_is_one_model_for_both(asked, how, adapter) -> None:
    assert asked.one_base
    assert asked.names == Both("tuned", "begin")
    assert not replace(asked, start=Subject("other", replace(how, dtype="bfloat16"))).one_base
    behind = replace(asked, start=Subject("served", how, url="http://here/v1", served="m"))
    assert (behind.one_base, behind.local) == (False, [behind.policy])


def test_a_policy_came_from_its_base_whatever_it_is_compared_with(asked, how, adapter, tmp_path) -> None:
    assert asked.origin is asked.start
    run = tmp_path / "run"
    other = replace(asked, policy=replace(asked.policy, run=run), start=Subject("other", how, adapter))
    assert (other.origin.name, other.origin.adapter, other.origin.base) == ("base", None, how.base)
    (run / "sft").mkdir(parents=True)
    assert other.origin.name == "sft"


def test_a_request_is_spelled_as_whoever_asks_spells_it(asked) -> None:
    assert asked.key("best_of_n") == "--best-of-n"
    assert replace(asked, in_recipe=True).key("best_of_n") == "Recipe key 'evaluate.best_of_n'"
    assert asked.progress("tuned answers ") == "tuned answers"
    assert replace(asked, in_recipe=True).progress("tuned answers") == "evaluate: tuned answers"


def test_kept_replies_are_those_of_the_same_weights_and_decoding(asked, how, adapter) -> None:
    """What a kept reply is looked up by differs with the adapter, the decoding and nothing else."""
    tuned, begin = (asked.replies_of(subject).of for subject in asked.subjects)
    assert tuned != begin
    assert begin == asked.replies_of(Subject("renamed", how)).of
    assert tuned == asked.replies_of(Subject("step-4", how, adapter)).of
    assert begin != replace(asked, temperature=0.5).replies_of(asked.start).of


# ---- what is read


def test_what_fits_is_counted_once_for_one_base_and_for_each_of_two(asked, how) -> None:
    with Path(asked.prompts[0].source).open("a") as file:
        file.write(json.dumps({"prompt": "x" * 300}) + "\nno row\n")
    found = gather(asked)
    assert [p.messages[0]["content"] for p in found.prompts[OWN]] == [f"word {i}?" for i in range(6)]
    told = found.counts["evaluation prompts"]
    assert (told["read"], told["kept"], told["fitted"]) == (
        8, 7, {"token_limit": 250, "kept": 6, "cut_at_turns": 0, "too_long": 1}
    )  # fmt: skip
    assert set(found.digests()) == {"prompts", "chat template"}
    small = replace(asked, start=Subject("small", replace(how, context_length=12)))
    with pytest.raises(DataError, match=r"None of 6 evaluation prompts in small leaves room for a reply of 6 tokens"):
        gather(small)
    medium = gather(replace(asked, start=Subject("medium", replace(how, context_length=100))))
    assert medium.counts["evaluation prompts in tuned"]["too_long"] == 1
    assert medium.counts["evaluation prompts in medium"] == {
        "token_limit": 94, "kept": 6, "cut_at_turns": 0, "too_long": 0
    }  # fmt: skip
    with pytest.raises(DataError, match=r"leaves no room for a prompt.*lower --response-length"):
        gather(replace(asked, response_length=256))


def test_a_limit_takes_prompts_that_fit_by_a_hash_of_each(asked) -> None:
    """What is too long does not count against the limit, and a longer file takes in what a shorter one did."""
    path = Path(asked.prompts[0].source)
    path.write_text("".join(json.dumps({"prompt": "x" * 300 * (i % 2) + f"{i}?"}) + "\n" for i in range(12)))
    chosen = [prompt.messages for prompt in gather(replace(asked, limit=4)).prompts[OWN]]
    short = [[{"role": "user", "content": f"{i}?"}] for i in range(0, 12, 2)]
    least = sorted(short, key=prompt_share)[:4]
    assert chosen == [messages for messages in short if messages in least]
    assert chosen != short[:4]


def test_the_shipped_prompts_are_asked_where_no_others_show_refusals(asked) -> None:
    kinds = {p.facts["kind"] for p in gather(replace(asked, refusals=True, refusal_limit=2)).prompts[REFUSALS]}
    assert kinds == {"harmful", "scary", "question"}
    alone = gather(replace(asked, prompts=[], refusals=True, refusal_limit=2))
    assert (list(alone.prompts), len(alone.prompts[OWN])) == ([OWN], 6)


@pytest.fixture
def recipe_of(tmp_path):
    """The quickstart's recipe with other keys."""
    path = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    return lambda *overrides: load_recipe(path, [f"output_dir={tmp_path / 'run'}", *overrides])


def test_a_section_is_looked_through_before_anything_runs(recipe_of, base_folder, tmp_path, capsys) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"Recipe key 'evaluate.pairs': no pair is left of 1 rows|is not recognised"):
        check_section(recipe_of(f"evaluate.pairs=[{{source: {tmp_path / 'pairs.jsonl'}}}]"))
    for reference, words in (
        ("./nowhere", r"There is no policy at \./nowhere"),
        ("runs/othr", r"Recipe key 'evaluate.reference': 'runs/othr' is no folder here and not in the hub's cache"),
        (f"ppo={base_folder}", r"are both called 'ppo'; give one another name, by NAME="),
        (f"joint={base_folder}", r"A policy is called 'joint', as one of the report's judges is"),
        (f"prompt={base_folder}", r"or a column of the replies"),
    ):
        with pytest.raises(RecipeError, match=words):
            check_section(recipe_of(f"evaluate.reference={reference}"))
    check_section(recipe_of("evaluate.reference='http://localhost:1/v1#m'", "evaluate.judge='http://localhost:1/v1#j'"))
    said = capsys.readouterr().out  # a server may be started later, but whoever forgot it learns so now
    assert said.count("note: nobody answers at localhost:1 yet") == 2
    assert "'evaluate.judge' asks" in said
    assert "'evaluate.reference' asks" in said
    with pytest.raises(RecipeError, match=r"'evaluate.judge': 'local:nomodel': the model 'nomodel' is no folder here"):
        check_section(recipe_of("evaluate.judge=local:nomodel"))
    check_section(recipe_of(f"evaluate.reference={base_folder}"))


def test_a_reference_has_its_own_template_and_a_run_its_folders_name(recipe_of, base_folder, tmp_path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("x")
    own = f"model.chat_template={template}", "model.context_length=64"
    found = reference_of(recipe_of(f"evaluate.reference={base_folder}", *own))
    assert (found.model.chat_template, found.model.context_length) == (None, None)
    other = tmp_path / "other"
    (other / "ppo" / "policy").mkdir(parents=True)
    (other / "recipe.yaml").write_text(f"name: other\nmodel: {{base: {base_folder}}}\n")
    for text, name in ((other, "other"), (f"{other}:ppo", "other-ppo"), (f"mine={other}", "mine")):
        found = reference_of(recipe_of(f"evaluate.reference={text}"))
        assert (found.name, found.adapter) == (name, other / "ppo" / "policy")
    assert reference_of(recipe_of()) is None


# ---- who scores it


def test_an_adapter_on_the_policies_base_scores_as_by_itself(how, base_folder, reward_folder) -> None:
    """Two ways to read one model: by sampled tokens beside the policies, by text with a base of its own."""
    prompts = [Prompt([{"role": "user", "content": text}], "helpful", Origin("here", 1)) for text in ("a?", "and b?")]
    tokenizer = load_tokenizer(how.base, how)
    model = load_roles(base_folder, how, tokenizer, {"joint": reward_folder})
    texts, stopped = ["yes, so it is", "no"], [True, True]
    asked = [encode_prompt(tokenizer, prompt.messages) for prompt in prompts]
    replies = [
        Reply(ids, [*tokenizer.encode(text), tokenizer.eos_token_id], text, True)
        for ids, text in zip(asked, texts, strict=True)
    ]
    answers = Answers(texts, [14, 2], stopped, replies=replies)
    beside = OnTheBase(model, tokenizer, ["joint"], 256, 4, prompts, exact=True)
    alone = ByItself(RewardModel.from_pretrained(str(reward_folder)), [str(reward_folder)], exact=True)
    one, other = beside.of_answers(prompts, answers), alone.of_answers(prompts, answers)
    assert one.shape == other.shape == (2, 1)
    np.testing.assert_allclose(one, other, atol=1e-5)  # float32, read in other shapes
    assert abs(one[0, 0] - one[1, 0]) > 1e-3
    pairs = [Preference(p.messages, "yes", "no, no", "helpful", p.origin) for p in prompts]
    np.testing.assert_allclose(beside.of_pairs(pairs), alone.of_pairs(pairs), atol=1e-5)  # likewise
    assert beside.moved is not None
    assert beside.moved < 1e-4
    assert alone.moved is not None


class Counting:
    """A reader of two members: the reply's length, and its negative."""

    moved = 0.25

    def __init__(self, tokenizer, max_length=40) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def of_answers(self, prompts, answers):
        return np.array([[len(text), -len(text)] for text in answers.texts], np.float32)

    def of_pairs(self, pairs):
        return np.array([[len(t), -len(t) - 1] for p in pairs for t in (p.chosen, p.rejected)], np.float32)


def test_an_ensembles_mean_counts_and_pairs_that_do_not_fit_are_nan(tokenizer) -> None:
    rewards = Rewards({"reward": ["models/one", "models/two"], "heldout": []})
    rewards.identities = {"reward/one": {}, "reward/two": {}, "heldout": {}}
    prompts = [Prompt([{"role": "user", "content": "q"}], "helpful", Origin("here", 1))]
    answers, scores = Answers(["abcd"], [4], [True]), {"pairs": {}}
    rows = [Preference(prompts[0].messages, "ab" * n, "c", "helpful", Origin("here", n)) for n in (1, 60, 2)]
    score(rewards, [("reward", Counting(tokenizer))], [(prompts, answers)], {"pairs": rows}, scores)
    assert answers.reward == [0.0]
    assert answers.heldout is None
    np.testing.assert_array_equal(scores["pairs"]["one"], [[2, 1], [np.nan, np.nan], [4, 1]])
    np.testing.assert_array_equal(scores["pairs"]["two"][::2], [[-3, -2], [-5, -2]])
    np.testing.assert_array_equal(scores["pairs"]["reward"][::2], [[-0.5, -0.5], [-0.5, -0.5]])
    assert rewards.identities == {"reward/one": {MOVED: 0.25}, "reward/two": {MOVED: 0.25}, "heldout": {}}


def test_reward_models_are_tested_on_the_pairs_that_all_of_them_can_read() -> None:
    rewards = Rewards({"reward": ["a/x"], "heldout": ["b/y"]})
    rows = [
        Preference([{"role": "user", "content": f"q{i}"}], "yes", "no", "helpful", Origin("h", i)) for i in range(40)
    ]
    right = np.random.default_rng(0).normal([0.5, 0.0], 1.0, size=(40, 2))
    other = right.copy()
    right[0], other[1] = np.nan, np.nan
    entries, known, fitted = preferences(rewards, rows, {"reward": right, "heldout": other}, resamples=100, seed=0)
    assert fitted == {"kept": 38, "too_long": 2}
    accuracy = {e["subject"]: e for e in entries if (e["name"], e["split"]) == ("reward_accuracy", "all")}
    assert accuracy["reward"]["estimate"] == pytest.approx((right[2:, 0] > right[2:, 1]).mean())
    assert accuracy["reward"] | {"subject": ""} == accuracy["heldout"] | {"subject": ""}
    assert set(known["calibration"]) == {"reward", "heldout"}
    nothing = np.full((40, 2), np.nan)
    with pytest.raises(DataError, match="None of 40 pairs to test reward models on fits"):
        preferences(rewards, rows, {"reward": nothing, "heldout": other}, resamples=100, seed=0)


def test_a_runs_own_reward_models_are_read_on_the_base_they_were_trained_on(tmp_path) -> None:
    run = tmp_path / "run"
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "quickstart.yaml", [f"output_dir={run}"])
    how = replace(recipe.model, base=str(run / "sft" / "model"))
    asked = Evaluation(
        Subject("ppo", how, run / "ppo" / "policy", run=run), Subject("sft", how, run=run), tmp_path, recipe=recipe
    )
    own = {"joint": run / "reward" / "joint"}
    found = Rewards.of(asked)  # a run without a held-out model
    assert (found.folders, found.on_the_base) == ({"reward": [str(own["joint"])], "heldout": []}, {"reward": own})
    (run / "reward" / "heldout").mkdir(parents=True)
    found = Rewards.of(asked)
    assert found.on_the_base == {"reward": own, "heldout": {"heldout": run / "reward" / "heldout"}}
    assert found.adapters == {**own, "heldout": run / "reward" / "heldout"}
    assert found.trained is recipe
    named = Rewards.of(replace(asked, rewards=["some/model"]))
    assert named.folders["reward"] == ["some/model"]
    assert (list(named.on_the_base), named.trained) == (["heldout"], None)
    apart = Rewards.of(replace(asked, start=Subject("other", replace(how, base="some/base"), run=run)))
    assert apart.on_the_base == {}
    assert apart.folders == found.folders
    assert Rewards.of(replace(asked, recipe=None)).folders == {"reward": [], "heldout": []}


def test_what_cannot_be_loaded_or_read_is_named(asked, how, reward_folder, adapter, tmp_path, monkeypatch) -> None:
    """A damaged reward adapter is not the policy's fault, nor is one adapter another's."""
    damaged = tmp_path / "damaged"
    shutil.copytree(reward_folder, damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"no weights")
    rewards = Rewards({"reward": [str(damaged)], "heldout": []}, how, on_the_base={"reward": {"joint": damaged}})
    rewards.identify()
    with pytest.raises(DataError, match=rf"Reward model {damaged}"):
        ask(asked, gather(asked), rewards)
    second = tmp_path / "second"
    shutil.copytree(adapter, second)
    (second / "adapter_model.safetensors").write_bytes(b"no weights")
    twins = replace(asked, start=replace(asked.policy, name="twin", adapter=second))
    with pytest.raises(DataError, match=rf"Policy {second}"):
        ask(twins, gather(twins), Rewards({"reward": [], "heldout": []}))
    rewards = Rewards(
        {"reward": [str(reward_folder)], "heldout": []}, how, on_the_base={"reward": {"joint": reward_folder}}
    )
    rewards.identify()
    monkeypatch.setattr(
        "llm_rlhf.models.inference.role_scores", lambda m, n, ids, mask: torch.ones(len(ids)) * len(ids)
    )
    with pytest.raises(DataError, match=rf"Reward model {reward_folder}: The scores .* move by .* with the batch"):
        ask(asked, gather(asked), rewards)


def test_one_model_in_both_roles_is_refused_before_anything_is_loaded(asked, reward_folder) -> None:
    with pytest.raises(RecipeError, match="is the one that training went by"):
        measure(replace(asked, rewards=[str(reward_folder)], heldout=[str(reward_folder)], limit=3))
    assert not asked.output.exists()


def test_members_called_alike_or_as_a_role_are_numbered() -> None:
    rewards = Rewards({"reward": ["a/x", "b/x", "c/reward"], "heldout": ["d/y"]})
    assert rewards.names("reward") == ["x-1", "x-2", "reward-3"]
    assert rewards.names("heldout") == ["y"]


# ---- the whole


def test_measuring_asks_each_policy_and_scores_what_it_said(asked, reward_folder, tmp_path, base_folder) -> None:
    heldout = random_reward_adapter(base_folder, tmp_path / "heldout", seed=9)
    asked = replace(asked, rewards=[str(reward_folder)], heldout=[str(heldout)], resamples=100)
    found = measure(asked)
    tuned, begin = (found.answers[OWN][name] for name in asked.names)
    by_key = {(e.name, e.subject, e.reference, e.split): e for e in found.estimates}
    gain = by_key["reward_gain", "tuned", "begin", "all"]
    assert gain.estimate == pytest.approx(np.mean(tuned.reward) - np.mean(begin.reward))
    assert gain.n == 6
    assert by_key["kl", "tuned", "begin", "all"].estimate == pytest.approx(np.mean(tuned.sequence_kl))
    assert begin.sequence_kl == []
    assert {name: known["reading"] for name, known in found.instruments.items() if name != "refusal_detector"} == {
        "reward": "packed", "heldout": "packed"
    }  # fmt: skip
    again = ask(asked, gather(asked), Rewards.of(asked))  # from the replies that were kept
    assert again.answers[OWN]["tuned"].texts == tuned.texts
    with pytest.raises(RecipeError, match=r"both called 'tuned'"):
        measure(replace(asked, start=replace(asked.start, name="tuned")))


def test_settings_that_sampling_leaves_out_are_told(asked, base_folder, tmp_path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"no_repeat_ngram_size": 2}))
    how = replace(asked.policy.model, base=str(folder))
    told = replace(
        asked, policy=replace(asked.policy, model=how), start=replace(asked.start, model=how), output=tmp_path
    )
    found = ask(told, gather(told), Rewards.of(told))
    assert found.notes == [
        "The generation config of tuned and begin has no_repeat_ngram_size=2; replies were sampled without."
    ]
    plain = ask(asked, gather(asked), Rewards.of(asked))
    assert plain.notes == []
    assert plain.answers[OWN]["begin"].texts == found.answers[OWN]["begin"].texts


def test_the_same_adapter_twice_is_no_distance_away(asked) -> None:
    found = measure(replace(asked, start=replace(asked.policy, name="twin"), resamples=100))
    kl = next(e for e in found.estimates if e.name == "kl")
    assert kl.estimate == 0
    assert found.answers[OWN]["tuned"].texts == found.answers[OWN]["twin"].texts


@pytest.mark.slow
def test_snapshots_answer_for_themselves_and_the_base_many_times(asked, adapter, tmp_path) -> None:
    """Step 4 is the policy itself, step 2 nothing but its base; each prompt's replies of the best of n lie together."""
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "ppo" / "snapshots" / "step-4")
    nothing = get_peft_model(
        AutoModelForCausalLM.from_pretrained(asked.policy.base), LoraConfig(task_type="CAUSAL_LM", r=2)
    )
    nothing.save_pretrained(run / "ppo" / "snapshots" / "step-2")
    path = Path(asked.prompts[0].source)
    path.write_text("".join(json.dumps({"prompt": f"word {i}?"}) + "\n" for i in range(24)))
    policy = replace(asked.policy, run=run)
    asked = replace(asked, policy=policy, snapshot_prompts=20, best_of_n=3)
    material = gather(asked)
    found = ask(asked, material, Rewards.of(asked))
    curve = found.curve
    assert curve is not None
    assert curve.steps == [0, 2, 4]
    assert len(set(curve.rows)) == 20
    texts = {name: [given.texts[i] for i in curve.rows] for name, given in found.answers[OWN].items()}
    assert [answers.texts for answers in curve.answers] == [texts["begin"], texts["begin"], texts["tuned"]]
    assert curve.kl[:2] == [0, 0]
    own = found.answers[OWN]["tuned"].sequence_kl
    assert curve.kl[2] == pytest.approx(np.mean([own[i] for i in curve.rows]), abs=1e-5)  # float32, in other batches
    tokenizer = load_tokenizer(asked.policy.base, asked.policy.model)
    asked_of = [encode_prompt(tokenizer, material.prompts[OWN][i].messages) for i in curve.rows for _ in range(3)]
    assert curve.best_of is not None
    assert [reply.prompt_ids for reply in curve.best_of.replies] == asked_of
    assert curve.best_of.texts[::3] == texts["begin"]  # the first time a prompt is asked it is the base's own reply
    assert len(set(curve.best_of.texts)) > 20


def test_a_curve_of_three_points_by_hand() -> None:
    reward = np.array([[0.0] * 20, [1.0] * 20, [2.0] * 20])
    scores = [{"reward": row, "gold": row / 2} for row in reward]
    found = snapshot_curve([0, 4, 8], [0.0, 1.0, -0.01], scores, seed=0)
    assert found["points"] == [
        {"step": 0, "kl": 0.0, "sqrt_kl": 0.0, "reward": 0.0, "gold": 0.0},
        {"step": 4, "kl": 1.0, "sqrt_kl": 1.0, "reward": 1.0, "gold": 0.5},
        {"step": 8, "kl": -0.01, "sqrt_kl": 0.0, "reward": 2.0, "gold": 1.0},  # an estimate may lie under 0
    ]
    assert found["prompts"] == 20
    assert found["fits"] == {"reward": None, "gold": None}  # two points away from the start are too few
    assert list(found["parting"]) == ["gold"]


def test_snapshots_in_the_order_of_their_steps(tmp_path) -> None:
    for step in (0, 16, 4):
        (tmp_path / "snapshots" / f"step-{step}").mkdir(parents=True)
    assert list(snapshot_folders(tmp_path)) == [4, 16]


# ---- where it is written


def test_a_report_replaces_no_run_and_keeps_the_one_before(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with pytest.raises(RecipeError, match="is a run or a part of one"):
        check_output(tmp_path / "run")
    folder = tmp_path / "out"
    check_output(folder)
    for name in ("report.json", "replies_mine.jsonl", "lengths.json", "notes.txt"):
        (folder / name).write_text(name)
    archive_report(folder)
    assert {path.name for path in folder.iterdir()} == {"archive", "notes.txt"}
    assert {path.name for path in folder.rglob("archive/*/*")} == {"report.json", "replies_mine.jsonl", "lengths.json"}


def test_what_was_read_is_told_by_hashes() -> None:
    row = Prompt([{"role": "user", "content": "q"}], "helpful", Origin("here", 1))
    one = Material({OWN: [row]}).digests()
    assert one == Material({OWN: [replace(row, origin=Origin("there", 9))]}).digests()
    assert one != Material({OWN: [replace(row, objective="harmless")]}).digests()


# ---- a tokenizer and a template that were saved beside an adapter


OWN_TEMPLATE = (
    "{%- for m in messages -%}{{ ('<|reply|>' if m['role'] == 'assistant' else '<|ask|>') + m['content'] + eos_token }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|reply|>{%- endif -%}"
)
SHOUTED = (
    "{%- for m in messages -%}{{ '<|' + m['role'] + '|>' + m['content'] | upper + eos_token }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def by_plain_peft(base: Path, adapter: Path, tokenizer: Any, rows: int, prompts: list[Prompt]) -> list[str]:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model = PeftModel.from_pretrained(model, adapter).eval()
    texts = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        whole = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=1)
        texts.append(tokenizer.decode(whole[0, ids["input_ids"].size(1) :], skip_special_tokens=True).strip())
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens"]}], ids=["grown", "trained"])
def test_an_adapter_is_asked_with_the_tokenizer_beside_it_and_its_base_with_its_own(
    asked, base_folder, tmp_path, options
) -> None:
    """Its file holds embeddings for two tokens that its base does not have."""
    folder = grown_adapter(base_folder, tmp_path / "grown", "CAUSAL_LM", 263, **options)
    tokenizer = own_tokens(base_folder, folder, OWN_TEMPLATE)
    policy = replace(asked.policy, adapter=folder)
    found = measure(replace(asked, policy=policy, temperature=0.0, resamples=100))
    prompts = gather(asked).prompts[OWN]
    expected = by_plain_peft(base_folder, folder, tokenizer, 263, prompts)
    assert found.answers[OWN]["tuned"].texts == expected
    plain = measure(replace(asked, temperature=0.0, resamples=100, output=tmp_path / "plain"))
    assert found.answers[OWN]["begin"].texts == plain.answers[OWN]["begin"].texts
    assert not any(estimate.name == "kl" for estimate in found.estimates)
    assert any("tuned and begin stand on one base and have different tokenizers" in note for note in found.notes)
    assert {"chat template of tuned", "chat template of begin"} <= found.material.templates.keys()


def test_a_template_beside_an_adapter_is_its_own(asked, base_folder, adapter, tmp_path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "shouting")
    (folder / "chat_template.jinja").write_text(SHOUTED)
    policy = replace(asked.policy, adapter=folder)
    found = measure(replace(asked, policy=policy, temperature=0.0, resamples=100))
    named = replace(asked.policy, model=replace(asked.policy.model, chat_template=str(folder / "chat_template.jinja")))
    expected = measure(replace(asked, policy=named, temperature=0.0, resamples=100, output=tmp_path / "named"))
    plain = measure(replace(asked, temperature=0.0, resamples=100, output=tmp_path / "plain"))
    tuned, shouted, quiet = (each.answers[OWN]["tuned"].texts for each in (found, expected, plain))
    assert tuned == shouted != quiet
    assert found.answers[OWN]["begin"].texts == plain.answers[OWN]["begin"].texts


def test_the_bases_own_tokenizer_beside_an_adapter_changes_nothing(asked, tokenizer, adapter, tmp_path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "saved")
    tokenizer.save_pretrained(folder)
    saved = replace(asked, policy=replace(asked.policy, adapter=folder))
    assert saved.one_base
    (folder / "chat_template.jinja").write_text(SHOUTED)
    assert not replace(saved).one_base
    named = tmp_path / "named.jinja"
    named.write_text(SHOUTED)
    model = replace(asked.policy.model, chat_template=str(named))  # a template that is asked for is everybody's
    assert replace(saved, policy=replace(saved.policy, model=model), start=replace(saved.start, model=model)).one_base


def test_embeddings_that_would_take_the_bases_place_are_refused(asked, base_folder, tmp_path) -> None:
    folder = grown_adapter(base_folder, tmp_path / "grown", "CAUSAL_LM", 261)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    save_file(weights | {"base_model.model.model.embed_tokens.weight": torch.zeros(261, 32)}, path)
    policy = replace(asked.policy, adapter=folder)
    with pytest.raises(DataError, match=r"holds a model.embed_tokens.weight of its own, which would take the place"):
        measure(replace(asked, policy=policy))
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"bias": "none"', '"bias": "all"'))
    with pytest.raises(DataError, match=r"policy adapter at .*grown has bias 'all'.* Merge it into its base"):
        measure(replace(asked, policy=policy))


def test_a_reward_adapter_reads_with_the_tokenizer_beside_it(base_folder, tmp_path) -> None:
    folder = grown_adapter(base_folder, tmp_path / "reward", "SEQ_CLS", 263)
    tokenizer = own_tokens(base_folder, folder, OWN_TEMPLATE)
    scores = RewardModel.from_pretrained(folder, base=base_folder).score([("who?", "me"), ("where", "here")])
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    model.resize_token_embeddings(263, mean_resizing=False)
    model = PeftModel.from_pretrained(model, folder).eval()
    for found, (prompt, reply) in zip(scores, [("who?", "me"), ("where", "here")], strict=True):
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        ids = tokenizer.apply_chat_template(talk, return_dict=True, return_tensors="pt")
        assert ids["input_ids"][0, 0] == 261
        assert model(**ids).logits.item() == pytest.approx(found, abs=1e-5)
    template = folder / "chat_template.jinja"
    plain = shutil.copytree(random_reward_adapter(base_folder, tmp_path / "plain"), tmp_path / "shouting")
    template.write_text(SHOUTED)
    shutil.copy(template, plain / "chat_template.jinja")
    shouting = RewardModel.from_pretrained(plain, base=base_folder)
    assert shouting.tokenizer.chat_template == SHOUTED
    assert shouting.score([("who?", "me")]) == shouting.score([("WHO?", "ME")])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"trainable_token_indices": [101, 110]}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_adapters_of_more_than_lora_are_asked_beside_others(asked, adapter, base_folder, tmp_path, options) -> None:
    """In either order: the first is on the base when it is made, the second comes beside it."""
    folder = grown_adapter(base_folder, tmp_path / "more", "CAUSAL_LM", 261, **options)
    prompts, tokenizer = gather(asked).prompts[OWN], load_tokenizer(base_folder, asked.policy.model)
    expected = {path: by_plain_peft(base_folder, path, tokenizer, 261, prompts) for path in (folder, adapter)}
    for first, second in ((folder, adapter), (adapter, folder)):
        policy, start = replace(asked.policy, adapter=first), replace(asked.start, adapter=second)
        output = tmp_path / first.name
        cold = measure(replace(asked, policy=policy, start=start, output=output, temperature=0.0, resamples=100))
        assert cold.answers[OWN]["tuned"].texts == expected[first]
        assert cold.answers[OWN]["begin"].texts == expected[second]
        warm = measure(replace(asked, policy=policy, start=start, output=output, resamples=100))
        assert all(np.isfinite(warm.answers[OWN]["tuned"].sequence_kl))


def test_the_check_of_scores_reads_no_more_of_a_prompt_than_the_model_takes(tokenizer, monkeypatch) -> None:
    """Of a prompt of thousands of tokens its end, as of any that is cut: who asks for scores has fitted the rows."""
    seen: list[list[list[int]]] = []
    monkeypatch.setattr("llm_rlhf.evaluation.rewards.check_batch_invariance", lambda *args: seen.append(args[2]) or 0.0)
    prompts = [Prompt([{"role": "user", "content": "x" * n}], "helpful", Origin("here", n)) for n in (5, 5000)]
    OnTheBase(None, tokenizer, ["joint"], 64, 8, prompts, exact=True)
    short, long = seen[0]
    assert len(short) < len(long) == 64
    assert long == encode_prompt(tokenizer, prompts[1].messages)[-64:]
