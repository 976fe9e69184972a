"""Thoughts before a reply: written as the template writes them, and no part of what is judged."""

import pytest
from template_helpers import FAMILIES, TEMPLATES, stand_in

from llm_rlhf.data.rows import Demonstration, Origin, Preference
from llm_rlhf.models.encoding import encode_demonstration, encode_prompt, encode_reply, encode_turn
from llm_rlhf.models.fitting import Fitted, fit_demonstrations, fit_preferences
from llm_rlhf.models.inference import ids_to_score, reply_of
from llm_rlhf.models.thoughts import WRITTEN, read_response, split_thought, thought_marks


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, thought: str = "") -> dict[str, str]:
    return {"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {})


THINK = "<think>\nT\n</think>\n\nA"
# What a policy is to say behind the generation prompt: without a thought and with one, the stop token left out.
SAID = {
    "llama3": ("A", THINK),
    "llama3_2": ("A", THINK),
    "qwen2_5": ("A", THINK),
    "phi3": ("A", THINK),
    "gemma": ("A", THINK),
    "qwen3": ("<think>\n\n</think>\n\nA", THINK),
    "qwen3_5": ("\n</think>\n\nA", "T\n</think>\n\nA"),  # the prompt opens the thought
    "qwen3_8": ("\n</think>\n\nA", "T\n</think>\n\nA"),
    "deepseekv3": ("\n</think>\n\nA", "T\n</think>\n\nA"),  # the template would take the thought out
    "nemotron": ("</think>A", "T\n</think>\nA"),
    "gemma4": ("A", "<|channel>thought\nT\n<channel|>A"),
    "gptoss": (
        "<|channel|>final<|message|>A",
        "<|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>final<|message|>A",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_thought_is_written_as_the_template_writes_it_whether_it_stands_in_the_text_or_under_a_key(family) -> None:
    tokenizer = stand_in(family)
    plain, thinking = SAID[family]
    eos = tokenizer.eos_token
    for turn, expected in ((assistant("A"), plain), (assistant("A", "T"), thinking), (assistant(THINK), thinking)):
        prompt_ids, reply_ids = encode_turn(tokenizer, [user("Q")], turn)
        assert tokenizer.decode(reply_ids) == expected + eos
        assert prompt_ids == encode_prompt(tokenizer, [user("Q")])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_written_is_read_as_thought_and_reply(family) -> None:
    """Writing and reading are each other's inverse, and reward models read what a plain reply would be."""
    tokenizer = stand_in(family)
    plain = encode_reply(tokenizer, [user("Q")], "A")
    for turn, thought in ((assistant("A"), ""), (assistant("A", "T"), "T")):
        prompt_ids, ids = encode_turn(tokenizer, [user("Q")], turn)
        reply = reply_of(tokenizer, prompt_ids, ids, [tokenizer.eos_token_id])
        assert (reply.thought, reply.text, reply.stopped) == (thought, "A", True)
        assert tokenizer.decode(reply.said_ids, skip_special_tokens=True).strip() == "A"
        assert ids_to_score(tokenizer, [[user("Q")]], [reply]) == [plain.ids]
        cut = reply_of(tokenizer, prompt_ids, ids[:-1], [tokenizer.eos_token_id])
        assert ids_to_score(tokenizer, [[user("Q")]], [cut]) == [plain.ids[:-1]]
    assert encode_reply(tokenizer, [user("Q")], THINK) == plain


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5", "deepseekv3", "nemotron", "gptoss"])
def test_a_thought_that_never_ends_leaves_no_reply(family) -> None:
    tokenizer = stand_in(family)
    prompt_ids, ids = encode_turn(tokenizer, [user("Q")], assistant("A", "thinking and thinking"))
    within = ids[: ids.index(tokenizer.encode("and", add_special_tokens=False)[0]) + 20]
    said = read_response(tokenizer, prompt_ids, within)
    assert said.reply == ""
    assert said.start == len(within)
    assert said.thought.startswith("thinking")
    assert read_response(tokenizer, prompt_ids, [*within, tokenizer.eos_token_id]).thought == said.thought


def test_a_reply_that_begins_with_no_thought_is_all_reply() -> None:
    assert split_thought(" Use <think> to think </think>.", WRITTEN) == ("", " Use <think> to think </think>.")
    assert split_thought("<think>a</think> b </think> c", WRITTEN) == ("a", "b </think> c")  # from the first end on
    assert split_thought("</think>\n\nb", WRITTEN) == ("", "b")
    assert split_thought("a</think>b", WRITTEN) == ("", "a</think>b")
    assert split_thought("a</think>b", WRITTEN, opened=True) == ("a", "b")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_turn_of_a_conversation_is_trained_on(family) -> None:
    """Where the template rewrites history each turn is an example, else one example holds them all."""
    tokenizer = stand_in(family)
    talk = [user("Q1"), assistant("A1", "T1"), user("Q2"), assistant("A2", "T2"), user("Q3"), assistant("A3", "T3")]
    examples = encode_demonstration(tokenizer, talk, [1, 3, 5])
    trained = [[i for i, m in zip(ids, mask, strict=True) if m] for ids, mask in examples]
    alone = [encode_turn(tokenizer, talk[:turn], talk[turn]) for turn in (1, 3, 5)]
    assert [i for ids in trained for i in ids] == [i for each in alone for i in each.reply_ids]
    rewrites = family in ("qwen3", "qwen3_5", "deepseekv3", "nemotron", "gemma4", "gptoss")
    assert len(examples) == (3 if rewrites else 1)
    for ids, mask in examples:  # each up to its last trained token, as the policy is prompted
        assert mask[-1] == 1
        assert len(ids) == len(mask)


def test_a_conversation_becomes_several_examples_and_is_counted() -> None:
    tokenizer = stand_in("qwen3")
    talk = [user("Q1"), assistant("A1"), user("Q2"), assistant("A2")]
    rows = [Demonstration(talk, Origin("here", 1), every_reply=True), Demonstration(talk[:2], Origin("here", 2))]
    account = Fitted(1000, "demonstrations")
    assert len(fit_demonstrations(tokenizer, rows, account)) == 3
    assert account.counts() == {"token_limit": 1000, "kept": 2, "cut_at_turns": 0, "too_long": 0, "examples": 3}


def test_an_earlier_turn_whose_own_example_does_not_fit_is_counted() -> None:
    tokenizer = stand_in("qwen3")
    talk = [user("Q1"), assistant("A1", "T" * 200), user("Q2"), assistant("A2")]
    account = Fitted(180, "demonstrations")
    examples = fit_demonstrations(tokenizer, [Demonstration(talk, Origin("here", 1), every_reply=True)], account)
    assert len(examples) == 1
    assert account.counts()["turns_too_long"] == 1
    assert account.counts()["kept"] == 1


def test_replies_that_differ_in_their_thoughts_alone_are_no_pair() -> None:
    tokenizer = stand_in("qwen3")

    def pair(number: int, chosen: str, rejected: str) -> Preference:
        return Preference([user("Q")], chosen, rejected, "helpful", Origin("here", number))

    rows = [pair(1, THINK, "A"), pair(2, THINK, "<think>\nT\n</think>"), pair(3, THINK, "B")]
    account = Fitted(1000, "pairs")
    assert fit_preferences(tokenizer, rows, account) == rows[2:]
    assert account.refused == [
        ("here, row 1", "without their thoughts the two replies are the same"),
        ("here, row 2", "a reply is a thought and nothing else"),
    ]


def test_a_prompt_that_ends_the_thought_gets_replies_without() -> None:
    tokenizer = stand_in("qwen3")
    tokenizer.chat_template = "{%- set enable_thinking = false %}\n" + tokenizer.chat_template
    prompt_ids, reply_ids = encode_turn(tokenizer, [user("Q")], assistant(THINK))
    assert tokenizer.decode(prompt_ids).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.decode(reply_ids) == "A<|im_end|>"


def test_a_typed_stop_in_a_thought_is_text() -> None:
    for family in ("qwen3", "deepseekv3", "gptoss"):
        tokenizer = stand_in(family)
        eos = tokenizer.eos_token_id
        _, ids = encode_turn(tokenizer, [user("Q")], assistant("A", f"say {tokenizer.eos_token} now"))
        assert ids.count(eos) == 1
        assert ids[-1] == eos
        assert f"say {tokenizer.eos_token} now" in tokenizer.decode(ids)


def test_marks_are_found_by_letting_the_template_write_a_thought() -> None:
    assert thought_marks(stand_in("gptoss"))[:] == (
        "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "key", "<|end|><|start|>assistant"
    )  # fmt: skip
    tokenizer = stand_in("qwen3")
    assert thought_marks(tokenizer).writes == "key"
    tokenizer.chat_template = stand_in("qwen2_5").chat_template
    assert thought_marks(tokenizer) == WRITTEN  # another template, probed anew


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "reply", ["Use </think> to end", "a <think>b</think> c", "say <|channel>thought b<channel|> c"]
)
def test_a_reply_that_quotes_the_marks_keeps_its_beginning(family, reply) -> None:
    """Templates that look for thoughts in text would find one in it."""
    tokenizer = stand_in(family)
    talk = [user("Q1"), assistant(reply), user("Q2")]
    assert reply in tokenizer.decode(encode_prompt(tokenizer, talk))
    for thought in ("", "T"):
        prompt_ids, ids = encode_turn(tokenizer, talk, assistant(reply, thought))
        said = read_response(tokenizer, prompt_ids, ids)
        assert (said.thought, said.reply) == (thought, reply)
        assert reply in tokenizer.decode(ids)
        assert ids.count(tokenizer.eos_token_id) == 1


def test_what_was_told_apart_once_is_told_apart_no_more() -> None:
    """A reply that quotes a thought at its beginning is read by reward models as it is judged."""
    tokenizer = stand_in("llama3")
    prompt_ids = encode_prompt(tokenizer, [user("Q")])
    ids = tokenizer.encode("<think>T</think><think>b</think> c<|eot_id|>", add_special_tokens=False)
    reply = reply_of(tokenizer, prompt_ids, ids, [tokenizer.eos_token_id])
    assert (reply.thought, reply.text) == ("T", "<think>b</think> c")
    (row,) = ids_to_score(tokenizer, [[user("Q")]], [reply])
    assert tokenizer.decode(row[len(prompt_ids) :]) == "<think>b</think> c<|eot_id|>"


def test_a_thought_that_stands_in_the_text_and_under_the_key_is_written_once() -> None:
    for family in ("qwen3", "llama3", "deepseekv3"):
        tokenizer = stand_in(family)
        _, ids = encode_turn(tokenizer, [user("Q")], assistant(THINK, "T"))
        assert tokenizer.decode(ids).count("T") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_response_is_a_beginning_of_the_reply_or_nothing(family) -> None:
    """Wherever it is cut: within a mark, within the thought, within the reply."""
    tokenizer = stand_in(family)
    prompt_ids, ids = encode_turn(tokenizer, [user("Q")], assistant("reply é", "t x"))
    for count in range(len(ids)):
        cut = reply_of(tokenizer, prompt_ids, ids[:count], [tokenizer.eos_token_id])
        assert "reply é".startswith(cut.text.rstrip("\ufffd"))
        assert not cut.stopped
        ids_to_score(tokenizer, [[user("Q")]], [cut])


def test_a_token_that_ends_the_mark_and_begins_the_reply_is_not_lost() -> None:
    """As `>"` is one, in vocabularies that have no token of their own for the mark."""
    tokenizer = stand_in("qwen3_5")
    tokenizer.add_tokens(['>"'])
    prompt_ids = encode_prompt(tokenizer, [user("Q")])
    ids = tokenizer.encode('T</think>"Yes," he said.<|im_end|>', add_special_tokens=False)
    assert '>"' in tokenizer.convert_ids_to_tokens(ids)
    said = read_response(tokenizer, prompt_ids, ids)
    assert (said.thought, said.reply) == ("T", '"Yes," he said.')


def test_marks_of_written_text_are_read_where_the_template_has_others() -> None:
    """Gemma 4's first template leaves text as it stands, so that a policy learns to write `<think>` from the data."""
    tokenizer = stand_in("gemma4")
    tokenizer.chat_template = (TEMPLATES / "gemma4.jinja").read_text(encoding="utf-8")
    prompt_ids, ids = encode_turn(tokenizer, [user("Q")], assistant(THINK))
    said = read_response(tokenizer, prompt_ids, ids)
    assert (said.thought, said.reply) == ("T", "A")
