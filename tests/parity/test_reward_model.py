"""RewardModel against models' own forwards, PPO's reward role, and plain transformers and PEFT in a bare process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import random_reward_adapter
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
)

from llm_rlhf import RewardModel
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.inference import load_roles, score_ids
from llm_rlhf.recipe.sections import ModelSection
from llm_rlhf.reward import model as reading
from llm_rlhf.reward.loading import write_calibration

CLOSE = 1e-5  # float32 sums in another order: up to 2e-6 was measured


def talks(seed: int = 0, prompts: int = 9, replies: int = 3, most: int = 30) -> list[tuple[str, str]]:
    """Conversations of random letters; one to three replies to each prompt, in no order."""
    rng = np.random.default_rng(seed)

    def text() -> str:
        return "".join(rng.choice(list("abcdefgh "), size=rng.integers(1, most)))

    found = [
        (prompt, text()) for prompt in (text() for _ in range(prompts)) for _ in range(rng.integers(1, replies + 1))
    ]
    rng.shuffle(found)
    return [(str(prompt), str(reply)) for prompt, reply in found]


def messages(prompt: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, tokenizer: Any) -> list[Path]:
    """Three adapters as the reward stage leaves them: head, tokenizer, normalisation."""
    folders = []
    for seed in range(3):
        folder = random_reward_adapter(base_folder, tmp_path_factory.mktemp("run") / "reward" / f"joint-{seed}", seed)
        tokenizer.save_pretrained(folder)
        (folder / "normalisation.json").write_text(json.dumps({"mean": 0.3 * seed - 0.2, "deviation": 1.0 + seed}))
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def reward_model(adapters: list[Path]) -> RewardModel:
    return RewardModel.from_pretrained(adapters[1])


class TestScores:
    def test_are_those_of_ppos_reward_role(self, adapters, reward_model, base_folder, tokenizer) -> None:
        roles = load_roles(base_folder, ModelSection(), tokenizer, {"reward": adapters[1]})
        ids = [encode_reply(tokenizer, [{"role": "user", "content": p}], r).ids for p, r in talks()]
        expected = score_ids(roles, "reward", ids, tokenizer.pad_token_id)
        found = reward_model.score(talks())
        assert (found.dtype, found.shape) == (np.float32, (len(ids),))
        np.testing.assert_allclose(found, expected, atol=CLOSE)
        assert expected.std() > 0.1

    @pytest.mark.parametrize(
        "reading", ["packed", "rows", *(pytest.param(how, marks=pytest.mark.slow) for how in ("whole", "alone"))]
    )
    def test_do_not_depend_on_batches_or_order(self, adapters, reward_model, reading) -> None:
        model = RewardModel.from_pretrained(adapters[1])
        assert model.reading == "packed"
        model.reading = reading
        model.tokenizer.padding_side = "right" if reading == "rows" else "left"
        asked = talks()
        expected = reward_model.score(asked)
        order = np.random.default_rng(1).permutation(len(asked))
        for budget in (1, 40, 97, 100_000):
            np.testing.assert_allclose(model.score(asked, token_budget=budget), expected, atol=CLOSE)
            shuffled = model.score([asked[i] for i in order], token_budget=budget)
            np.testing.assert_allclose(shuffled, expected[order], atol=CLOSE)

    def test_of_messages_texts_and_prompts_of_messages_are_the_same(self, reward_model) -> None:
        prompt, reply = "hello", "good day"
        three = reward_model.score([messages(prompt, reply), (prompt, reply), (messages(prompt, reply)[:1], reply)])
        assert np.ptp(three) <= CLOSE

    def test_many_replies_to_one_prompt_and_twice_the_same(self, reward_model) -> None:
        """Replies that are equal, that begin alike, that are empty; a group is cut where it grows too long."""
        asked = [("ab", reply) for reply in ("", "x", "xy", "xy", "x" * 200, *("z" * n for n in range(60)))]
        alone = np.concatenate([reward_model.score([one]) for one in asked])
        np.testing.assert_allclose(reward_model.score(asked), alone, atol=CLOSE)
        assert alone[2] == pytest.approx(alone[3])

    def test_of_nothing_are_an_empty_array(self, reward_model) -> None:
        for found, shape in ((reward_model.score([]), (0,)), (reward_model.scores_each([]), (0, 1))):
            assert (found.shape, found.dtype) == (shape, np.float32)
        assert reward_model.probability([], [], []).shape == (0,)

    def test_a_score_that_is_not_finite_is_an_error(self, adapters) -> None:
        model = RewardModel.from_pretrained(adapters[0])
        model.members[0].head.weight.data.fill_(float("nan"))
        with pytest.raises(ValueError, match=r"conversations\[0\] has a score that is not finite \(2 of 2"):
            model.score(talks()[:2])

    def test_a_batch_too_large_for_the_memory_is_halved(self, adapters, reward_model, monkeypatch) -> None:
        model = RewardModel.from_pretrained(adapters[1])
        read = model._score_groups

        def small_memory(groups: Any, member: Any) -> list[float]:
            if sum(len(group.rows) for group in groups) > room:
                raise torch.OutOfMemoryError("no more")
            return read(groups, member)

        monkeypatch.setattr(model, "_score_groups", small_memory)
        monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
        room = 1
        np.testing.assert_allclose(model.score(talks()), reward_model.score(talks()), atol=CLOSE)
        room = 0
        with pytest.raises(torch.OutOfMemoryError, match="max_length"):
            model.score(talks())

    @pytest.mark.slow
    def test_bfloat16_moves_them_little(self, adapters) -> None:
        """As RewardModel says of bfloat16: the batch moves a score by a few percent of their deviation at most."""
        model = RewardModel.from_pretrained(adapters[0], dtype="bfloat16")
        asked = talks(prompts=40)
        runs = np.stack([model.score(asked, token_budget=budget) for budget in (1, 200, 5000)])
        assert np.ptp(runs, axis=0).max() < 0.1 * runs[0].std()
        exact = RewardModel.from_pretrained(adapters[0]).score(asked)
        assert np.corrcoef(exact, runs[0])[0, 1] > 0.99


class TestNormalisationAndCalibration:
    def test_normalisation_can_be_left_out(self, adapters, reward_model) -> None:
        raw = RewardModel.from_pretrained(adapters[1], normalised=False).score(talks())
        np.testing.assert_allclose((raw - 0.1) / 2.0, reward_model.score(talks()), atol=CLOSE)

    @pytest.mark.parametrize("normalised", [True, False])
    def test_probability_is_read_with_the_stored_temperature(self, adapters, tmp_path, normalised) -> None:
        folder = shutil.copytree(adapters[1], tmp_path / "reward" / "joint")
        write_calibration(folder, {"temperature": 0.5, "n": 10})
        raw = RewardModel.from_pretrained(adapters[1], normalised=False).score([("p", "a"), ("p", "bb")])
        model = RewardModel.from_pretrained(folder, normalised=normalised)
        expected = 1 / (1 + np.exp(-(raw[0] - raw[1]) / 0.5))
        found = model.probability(["p", "p"], ["a", "bb"], ["bb", "a"])
        assert found == pytest.approx([expected, 1 - expected], abs=1e-5)
        assert not 0.45 < expected < 0.55

    def test_probabilities_without_a_temperature_are_those_of_training_and_warn(self, adapters, tmp_path) -> None:
        folder = shutil.copytree(adapters[1], tmp_path / "reward" / "joint")
        write_calibration(folder, {"temperature": None, "no_temperature": "every one of 4 pairs is right"})
        model, plain = RewardModel.from_pretrained(folder), RewardModel.from_pretrained(adapters[1])
        with pytest.warns(UserWarning, match="not calibrated: the held-out pairs of this reward model told no temper"):
            found = model.probability(["p"], ["a"], ["bb"])
        assert found == pytest.approx(plain.probability(["p"], ["a"], ["bb"]), abs=1e-6)

    def test_a_broken_temperature_is_refused(self, adapters, tmp_path) -> None:
        folder = shutil.copytree(adapters[1], tmp_path / "joint")
        write_calibration(folder, {"temperature": 0})
        with pytest.raises(ValueError, match="must be a positive number"):
            RewardModel.from_pretrained(folder)


class TestEnsembles:
    @pytest.mark.slow
    def test_score_is_the_mean_and_doubt_the_deviation(self, adapters) -> None:
        asked = talks()
        alone = np.stack([RewardModel.from_pretrained(folder).score(asked) for folder in adapters], axis=1)
        model = RewardModel.from_pretrained(adapters)
        np.testing.assert_allclose(model.scores_each(asked), alone, atol=CLOSE)
        np.testing.assert_allclose(model.score(asked), alone.mean(1), atol=CLOSE)
        np.testing.assert_allclose(model.doubt(asked), alone.std(1, ddof=1), atol=CLOSE)
        weighted = RewardModel.from_pretrained(adapters, weights=[1.0, 0.0, -2.0])
        np.testing.assert_allclose(weighted.score(asked), alone[:, 0] - 2 * alone[:, 2], atol=CLOSE)

    def test_one_member_has_no_doubt(self, reward_model) -> None:
        with pytest.raises(ValueError, match="several adapters"):
            reward_model.doubt([("a", "b")])

    def test_members_of_different_bases_or_templates_are_refused(self, adapters, tmp_path) -> None:
        other = shutil.copytree(adapters[1], tmp_path / "other")
        config = json.loads((other / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "some/other-base"
        (other / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="different bases"):
            RewardModel.from_pretrained([adapters[0], other])
        (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        base = json.loads((adapters[0] / "adapter_config.json").read_text())["base_model_name_or_path"]
        with pytest.raises(ValueError, match="different tokenizers or chat templates"):
            RewardModel.from_pretrained([adapters[0], other], base=base)

    def test_weights_must_be_one_a_member(self, adapters) -> None:
        with pytest.raises(ValueError, match="each of the 3 adapters"):
            RewardModel.from_pretrained(adapters, weights=[1.0])


class TestFindingTheBase:
    def test_a_run_that_was_moved_stands_on_its_own_base(self, adapters, base_folder, tmp_path) -> None:
        """The recorded place is gone; in a copy, the files of the copy are meant."""
        run = tmp_path / "moved"
        shutil.copytree(base_folder, run / "sft" / "model")
        folder = shutil.copytree(adapters[0], run / "reward" / "joint")
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "runs/long/gone/sft/model"
        (folder / "adapter_config.json").write_text(json.dumps(config))
        expected = RewardModel.from_pretrained(adapters[0]).score(talks())
        np.testing.assert_allclose(RewardModel.from_pretrained(folder).score(talks()), expected, atol=CLOSE)
        shutil.rmtree(run / "sft")
        with pytest.raises(ValueError, match=r"runs/long/gone/sft/model, which is not there.*base="):
            RewardModel.from_pretrained(folder)
        given = RewardModel.from_pretrained(folder, base=base_folder)
        np.testing.assert_allclose(given.score(talks()), expected, atol=CLOSE)

    def test_an_adapter_of_another_architecture_is_refused(self, adapters, tmp_path, tokenizer) -> None:
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, pad_token_id=1)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError):  # noqa: PT011 - PEFT's own words, or ours
            RewardModel.from_pretrained(adapters[0], base=tmp_path)


def whole_model(folder: Path, tokenizer: Any, config: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def own_scores(folder: Path, asked: list[tuple[str, str]]) -> list[float]:
    """What the model itself says of each conversation alone, as its template prints it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for prompt, reply in asked:
        ids = tokenizer.apply_chat_template(messages(prompt, reply), return_dict=True)["input_ids"]
        with torch.no_grad():
            found.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
    return found


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


class TestWholeModels:
    @pytest.mark.parametrize(
        ("config", "reading"),
        [
            (LlamaConfig(**SMALL, num_labels=1, vocab_size=261, pad_token_id=1), "packed"),
            (LlamaConfig(**SMALL, num_labels=1, vocab_size=261, pad_token_id=None), "packed"),
            (LlamaConfig(**SMALL, num_labels=1, vocab_size=261, pad_token_id=0), "packed"),  # the EOS token pads
            (GPT2Config(n_embd=32, n_layer=2, n_head=4, num_labels=1, vocab_size=261, pad_token_id=1), "packed"),
            (BertConfig(**SMALL, num_labels=1, vocab_size=261, pad_token_id=1), "whole"),  # reads its first token
        ],
        ids=["llama", "no pad token", "EOS pads", "gpt2", "bert"],
    )
    def test_score_as_their_own_forward(self, tmp_path, tokenizer, config, reading) -> None:
        folder = whole_model(tmp_path, tokenizer, config)
        model = RewardModel.from_pretrained(folder)
        assert model.reading == reading
        expected = own_scores(folder, talks())
        for budget in (1, 200, 10_000):
            np.testing.assert_allclose(model.score(talks(), token_budget=budget), expected, atol=CLOSE)
        assert np.std(expected) > 0.05

    @pytest.mark.parametrize("named", [True, False])
    def test_rows_are_not_packed_past_a_local_window(self, tmp_path, tokenizer, monkeypatch, named) -> None:
        """GPT-Neo's local layers see 256 tokens; a second reply stands behind the first, further from the prompt."""
        if not named:  # as if the configuration said nothing of windows: a long made-up row shows it
            monkeypatch.setattr(reading, "_attends_to_everything", lambda _: True)
        config = GPTNeoConfig(
            hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], num_labels=1,
            vocab_size=261, pad_token_id=1, max_position_embeddings=1024, initializer_range=0.2,
        )  # fmt: skip
        folder = whole_model(tmp_path, tokenizer, config)
        model = RewardModel.from_pretrained(folder)
        assert model.reading == "rows"
        asked = [("why " * 62, reply) for reply in ("because " * 9, "no " * 20, "it is so")]
        np.testing.assert_allclose(model.score(asked), own_scores(folder, asked), atol=CLOSE)

    def test_an_adapter_on_an_encoder_is_read_by_its_own_forward(self, tmp_path, tokenizer) -> None:
        config = BertConfig(**SMALL, num_labels=1, vocab_size=261, pad_token_id=1)
        base = whole_model(tmp_path / "base", tokenizer, config)
        lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
        model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.2)
        model.eval().save_pretrained(tmp_path / "adapter")
        expected = []
        for talk in talks():
            ids = tokenizer.apply_chat_template(messages(*talk), return_dict=True)["input_ids"]
            with torch.no_grad():
                expected.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
        found = RewardModel.from_pretrained(tmp_path / "adapter")
        assert found.reading == "whole"
        np.testing.assert_allclose(found.score(talks()), expected, atol=CLOSE)

    def test_what_a_template_prints_after_the_reply_is_read(self, tmp_path, tokenizer, monkeypatch) -> None:
        """As they were trained: only a run's own adapters stop at the reply's stop token."""
        monkeypatch.setattr(
            tokenizer, "chat_template", tokenizer.chat_template.replace("eos_token }}", "eos_token + '\n' }}")
        )
        folder = whole_model(tmp_path, tokenizer, LlamaConfig(**SMALL, num_labels=1, vocab_size=261, pad_token_id=1))
        model = RewardModel.from_pretrained(folder)
        np.testing.assert_allclose(model.score(talks()), own_scores(folder, talks()), atol=CLOSE)
        model._ends_with_reply = True
        assert np.abs(model.score(talks()) - own_scores(folder, talks())).max() > 0.01

    def test_two_labels_are_refused(self, tmp_path, tokenizer, base_folder) -> None:
        folder = whole_model(tmp_path, tokenizer, LlamaConfig(**SMALL, num_labels=2, vocab_size=261, pad_token_id=1))
        with pytest.raises(ValueError, match="It has 2 labels; a reward model has one"):
            RewardModel.from_pretrained(folder)
        with pytest.raises(ValueError, match="is a language model"):
            RewardModel.from_pretrained(base_folder)

    def test_a_head_that_was_never_saved_is_refused(self, tmp_path, tokenizer, base_folder) -> None:
        folder = shutil.copytree(base_folder, tmp_path / "headless")
        config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "LABEL_0"}, "num_labels": 1}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"lack score\.weight: it has no trained head"):
            RewardModel.from_pretrained(folder)

    def test_a_tokenizer_without_template_needs_one(self, tmp_path, tokenizer) -> None:
        folder = whole_model(tmp_path, tokenizer, LlamaConfig(**SMALL, num_labels=1, vocab_size=261, pad_token_id=1))
        expected = RewardModel.from_pretrained(folder).score(talks())
        template = (folder / "chat_template.jinja").rename(tmp_path / "kept.jinja")
        with pytest.raises(ValueError, match="chat_template="):
            RewardModel.from_pretrained(folder)
        for given in (template, template.read_text()):
            found = RewardModel.from_pretrained(folder, chat_template=given).score(talks())
            np.testing.assert_allclose(found, expected, atol=CLOSE)

    def test_no_ensemble_of_them(self, tmp_path, tokenizer, adapters) -> None:
        folder = whole_model(tmp_path, tokenizer, LlamaConfig(**SMALL, num_labels=1, vocab_size=261, pad_token_id=1))
        with pytest.raises(ValueError, match="not a PEFT adapter"):
            RewardModel.from_pretrained([adapters[0], folder])


class TestInput:
    def test_too_long_a_conversation_loses_its_oldest_turns(self, adapters) -> None:
        model = RewardModel.from_pretrained(adapters[0], max_length=24)
        old = [{"role": "user", "content": "o" * 20}, {"role": "assistant", "content": "k"}]
        with pytest.warns(UserWarning, match="1 of 2 conversations were longer than 24 tokens"):
            found = model.score([old + messages("now", "yes"), messages("now", "yes")])
        assert found[0] == pytest.approx(found[1], abs=CLOSE)
        with pytest.raises(ValueError, match=r"conversations\[1\] does not fit into 24 tokens"):
            model.score([("a", "b"), ("a" * 30, "b")])

    def test_the_replies_of_a_pair_stand_behind_the_same_prompt(self, adapters) -> None:
        """Only the long reply needs the cut; the short one would score otherwise with all of its turns."""
        model = RewardModel.from_pretrained(adapters[0], max_length=40)
        prompt = [*messages("o" * 12, "k"), {"role": "user", "content": "now"}]
        with pytest.warns(UserWarning, match="2 of 2"):
            found = model.probability([prompt], ["y" * 20], ["n"])
        assert found == pytest.approx(model.probability(["now"], ["y" * 20], ["n"]), abs=CLOSE)
        whole, cut = model.score([(prompt, "n"), ("now", "n")])
        assert abs(whole - cut) > 0.01
        with pytest.raises(ValueError, match=r"conversations\[2\] or \[3\] does not fit"):
            model.probability(["a", "b"], ["c", "d" * 50], ["e", "f"])
        with pytest.raises(ValueError, match="2 prompts, 1 replies a and 2 replies b"):
            model.probability(["a", "b"], ["c"], ["d", "e"])

    @pytest.mark.parametrize(
        ("conversation", "words"),
        [
            ("text", "not a list of messages"),
            ([], "has no prompt"),
            ([{"role": "user", "content": "a"}], "does not end with a reply"),
            ([{"role": "assistant", "content": "a"}], "has no prompt"),
            ([{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}], "unknown role"),
            ([{"role": "user", "content": None}, {"role": "assistant", "content": "b"}], "missing field"),
            (("a", 3), "prompt and a reply"),
            (("a", "b", "c"), "wrong type"),
            (("\ud800", "b"), "lone surrogate"),
            (None, "missing field"),
        ],
    )
    def test_a_malformed_conversation_is_named(self, reward_model, conversation, words) -> None:
        with pytest.raises(ValueError, match=rf"conversations\[1\].*{words}"):
            reward_model.score([("a", "b"), conversation])

    def test_what_the_template_refuses_is_named(self, adapters) -> None:
        model = RewardModel.from_pretrained(adapters[0])
        model.tokenizer.chat_template = (
            "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
            + (model.tokenizer.chat_template)
        )
        with pytest.raises(ValueError, match=r"conversations\[2\]: the chat template refuses it: no"):
            model.score([("a", "b"), ("c", "d"), ("bad", "e")])

    def test_one_conversation_is_not_a_list_of_them(self, reward_model) -> None:
        with pytest.raises(ValueError, match="is a single conversation"):
            reward_model.score(messages("a", "b"))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"max_length": 10_000}, "takes 1 to 256"),
            ({"dtype": "float99"}, "dtype is"),
            ({"quantization": "q"}, "nf4"),
        ],
    )
    def test_options_that_cannot_be(self, adapters, options, words) -> None:
        with pytest.raises(ValueError, match=words):
            RewardModel.from_pretrained(adapters[0], **options)

    def test_a_place_where_no_reward_model_is(self, adapters) -> None:
        run = adapters[0].parent.parent
        with pytest.raises(ValueError, match=f"it is no reward model. These hold one: {adapters[0]}"):
            RewardModel.from_pretrained(run)
        with pytest.raises(ValueError, match="is no folder here, and no hub id"):
            RewardModel.from_pretrained("runs/none/reward/joint")
        with pytest.raises(ValueError, match="empty list"):
            RewardModel.from_pretrained([])


BARE = """
import json, sys
sys.modules["llm_rlhf"] = None  # importing it fails
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, adapter = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter, padding_side="right")
talks = json.loads(sys.stdin.read())
batch = tokenizer.apply_chat_template(talks, padding=True, return_dict=True, return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**batch).logits[:, 0].tolist()))
"""


@pytest.mark.slow
def test_plain_transformers_and_peft_read_the_same_without_this_package(adapters, base_folder, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", BARE, str(base_folder), str(adapters[2])],
        input=json.dumps([messages(*talk) for talk in talks()]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = RewardModel.from_pretrained(adapters[2], normalised=False).score(talks())
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, atol=CLOSE)
