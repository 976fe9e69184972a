"""Who answers: the very replies that an evaluation samples, stopped by Ctrl-C, cut to the context, scored."""

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from model_helpers import random_policy_adapter, random_reward_adapter

from llm_rlhf.chat.voices import Heard, Local, interrupts_held, load, sides_of
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.subjects import Subject, subject_of
from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.models.inference import sample_replies
from llm_rlhf.models.random_draws import prompt_uniforms
from llm_rlhf.models.streaming import Sampling, stream_reply
from llm_rlhf.recipe.sections import ModelSection
from llm_rlhf.reward.model import RewardModel

ASK = [{"role": "user", "content": "why not?"}]
SHORT = Sampling(response_length=12)


def nothing(thought: str, text: str) -> None: ...


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory, base_folder) -> Path:
    return random_policy_adapter(base_folder, tmp_path_factory.mktemp("policy"), seed=5, r=4)


@pytest.fixture(scope="module")
def loaded(base_folder, policy_folder, reward_folder) -> Any:
    """The policy beside its base, with one reward model."""
    sides = [subject_of(f"start={base_folder}"), subject_of(f"tuned={policy_folder}")]
    return load(sides, [str(reward_folder)], [], None, None)


def test_both_sides_are_one_base_in_memory_and_differ(loaded) -> None:
    (start, tuned), _, _ = loaded
    assert start.base is tuned.base
    one, other = (voice.answer(ASK, SHORT, nothing) for voice in (start, tuned))
    assert one.reply.ids != other.reply.ids


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_an_answer_is_the_reply_that_an_evaluation_samples(loaded, temperature) -> None:
    (_, tuned), _, _ = loaded
    base = tuned.base
    asked = [ASK, ASK, [{"role": "system", "content": "Be brief."}, *ASK]]
    decoding = {"response_length": 12, "temperature": temperature, "seed": 3}
    known = sample_replies(base.model, base.tokenizer, asked, ["default"], **decoding)
    told: list[tuple[str, str]] = []
    fresh = Local(tuned.subject, base)
    found = [fresh.answer(each, Sampling(**decoding), lambda *said: told.append(said)) for each in asked]
    assert [heard.reply for heard in found] == known
    assert found[0].reply.ids != found[1].reply.ids or temperature == 0, "asked again, it is another one"
    assert len(told) == sum(len(reply.ids) for reply in known), "told after every token"


def test_top_k_and_top_p_take_the_likeliest_tokens_alone(loaded) -> None:
    (_, tuned), _, _ = loaded
    base, ids = tuned.base, [5, 9, 30, 7, 3]
    greedy = stream_reply(base.model, base.tokenizer, ids, ["default"], Sampling(0.0, response_length=8), nothing)
    for narrow in (Sampling(top_k=1, response_length=8), Sampling(top_p=1e-6, response_length=8)):
        assert stream_reply(base.model, base.tokenizer, ids, ["default"], narrow, nothing).ids == greedy.ids
    # Two of the tokens, by hand: the first where the uniform number is under its share of both.
    pair = stream_reply(base.model, base.tokenizer, ids, [], Sampling(0.5, top_k=2, response_length=1), nothing)
    with torch.no_grad(), active_adapters(base.model, []):
        logits = base.model(input_ids=torch.tensor([ids])).logits[0, -1]
    shares = torch.zeros_like(logits)
    best = logits.topk(2).indices
    shares[best] = (logits[best] / 0.5).softmax(0)
    (uniform,) = prompt_uniforms(0, ids, 0, 1)
    assert pair.ids == [int((shares.cumsum(0) > uniform).nonzero()[0])]


def test_ctrl_c_ends_the_answer_and_leaves_the_adapters_as_they_were(loaded) -> None:
    (_, tuned), scores, _ = loaded
    long = Sampling(response_length=60, seed=1)
    whole = Local(tuned.subject, tuned.base).answer(ASK, long, nothing)
    came: list[str] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as on a terminal; in the background it may be ignored

    def interrupt(thought: str, text: str) -> None:
        came.append(text)
        if len(came) == 4:
            signal.raise_signal(signal.SIGINT)

    cut = Local(tuned.subject, tuned.base).answer(ASK, long, interrupt)
    assert cut.interrupted
    assert not cut.stopped
    assert cut.reply.ids == whole.reply.ids[:5], "the fourth is told when the criteria of its step have been asked"
    assert scores.of(cut).keys() == {"reward"}
    assert Local(tuned.subject, tuned.base).answer(ASK, long, nothing).reply == whole.reply
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_is_not_held() -> None:
    with interrupts_held() as came:
        signal.raise_signal(signal.SIGINT)
        assert came()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_oldest_turns_are_cut_as_an_evaluation_cuts_them(loaded) -> None:
    (start, _), _, _ = loaded
    talk = [{"role": "system", "content": "Be brief."}]
    for _ in range(6):
        talk += [{"role": "user", "content": "x" * 30}, {"role": "assistant", "content": "y" * 30}]
    heard = start.answer([*talk, *ASK], SHORT, nothing)
    assert heard.prompt[0] == talk[0]
    assert heard.prompt[1]["role"] == "user"
    assert heard.prompt[-1] == ASK[0]
    assert heard.cut == len(talk) + 1 - len(heard.prompt) > 0
    assert len(heard.reply.prompt_ids) <= 256 - 12
    with pytest.raises(DataError, match="too long for start: not even it alone fits into 244 tokens"):
        start.answer([{"role": "user", "content": "x" * 300}], SHORT, nothing)
    with pytest.raises(DataError, match="response_length is 256; set it lower"):
        start.answer(ASK, Sampling(response_length=256), nothing)


def test_the_score_is_the_reward_models_own(loaded, reward_folder, base_folder, capfd) -> None:
    (start, _), scores, _ = loaded
    heard = start.answer(ASK, Sampling(response_length=12, seed=2), nothing)
    found = scores.of(heard)
    assert capfd.readouterr() == ("", ""), "no bar among the answers"
    model = RewardModel.from_pretrained(reward_folder, base=base_folder)
    expected = model.scores_each([(ASK, heard.text.replace("\0", "\ufffd"))], finished=[heard.stopped])[0, 0]
    assert found["reward"] == pytest.approx(float(expected), abs=1e-4)  # read in another batch, fp32
    assert scores.of(dataclasses.replace(heard, text=" ")) == {}


@pytest.mark.slow
def test_nf4_answers_and_scores(base_folder, policy_folder) -> None:
    pytest.importorskip("bitsandbytes")
    section = ModelSection(dtype="bfloat16", quantization="nf4")
    sides = [subject_of(f"start={base_folder}", section), subject_of(f"tuned={policy_folder}", section)]
    voices, _, _ = load(sides, None, [], None, None)
    for voice in voices:
        heard = voice.answer(ASK, SHORT, nothing)
        assert heard.reply.ids


def test_thoughts_stay_in_history_where_the_template_decides(loaded) -> None:
    thinking = Heard(ASK, "Because.", "Well.", True, 4, 0.1)
    assert thinking.turn == {"role": "assistant", "content": "Because."}
    kept = dataclasses.replace(thinking, keeps_thought=True).turn
    assert kept == {"role": "assistant", "content": "Because.", "reasoning_content": "Well."}


class Names:
    """What sides names stand for, on folders that look like a run's."""

    def run(self, folder: Path) -> Path:
        (folder / "ppo" / "policy").mkdir(parents=True)
        (folder / "sft" / "model").mkdir(parents=True)
        (folder / "recipe.yaml").write_text("name: x\nmodel: {base: some/base}\n")
        return folder


def names(found: list[Subject]) -> list[str]:
    return [subject.name for subject in found]


def test_a_trained_run_comes_with_its_start(tmp_path) -> None:
    run, plain = Names().run(tmp_path / "run"), ModelSection()
    assert names(sides_of([str(run)], None, plain)) == ["sft", "ppo"]
    assert names(sides_of([str(run)], "policy", plain)) == ["ppo"]
    assert names(sides_of([str(run)], "start", plain)) == ["sft"]
    assert names(sides_of([f"{run}:sft"], None, plain)) == ["sft"]
    assert names(sides_of(["some/model"], None, plain)) == ["model"]
    other = Names().run(tmp_path / "other")
    assert names(sides_of([f"{run}/", str(other)], None, plain)) == [str(run), str(other)]
    assert names(sides_of([f"mine={run}", str(other)], None, plain)) == ["mine", "ppo"]
    for asked, only, told in (
        ([str(run), str(run)], None, "Both sides are called"),
        ([str(run), str(other)], "policy", "two sides are named"),
        (["some/model"], "start", "no policy trained in a run"),
        (["a", "b", "c"], None, "two sides at most"),
    ):
        with pytest.raises(RecipeError, match=told):
            sides_of(asked, only, plain)


@pytest.mark.slow
def test_a_held_out_one_beside_and_by_itself(base_folder, policy_folder, reward_folder, tmp_path) -> None:
    heldout = random_reward_adapter(base_folder, tmp_path / "heldout", seed=9)
    voices, scores, _ = load([subject_of(str(policy_folder))], [str(reward_folder)], [str(heldout)], None, None)
    heard = voices[0].answer(ASK, SHORT, nothing)
    found = scores.of(heard)
    assert found.keys() == {"reward", "heldout"}
    assert found["reward"] != found["heldout"]
