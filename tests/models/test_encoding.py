"""One encoding of conversations for every stage."""

import json

import pytest

from llm_rlhf.errors import RecipeError
from llm_rlhf.models.base import PLAIN_CHAT_TEMPLATE, load_tokenizer, stop_token_ids
from llm_rlhf.models.encoding import encode_demonstration, encode_prompt, encode_reply
from llm_rlhf.recipe.sections import ModelSection

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "and now?"},
]


def test_a_reply_follows_its_prompt_and_ends_with_eos(tokenizer) -> None:
    prompt, reply = encode_reply(tokenizer, TALK, "bye")
    assert prompt == encode_prompt(tokenizer, TALK)
    assert (
        tokenizer.decode(prompt) == "<|system|>be kind<|user|>hi<|assistant|>hello<|eos|><|user|>and now?<|assistant|>"
    )
    assert tokenizer.decode(reply) == "bye<|eos|>"


def test_what_a_template_prints_after_the_turn_is_cut(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(
        tokenizer, "chat_template", tokenizer.chat_template.replace("eos_token }}", "eos_token + '\n' }}")
    )
    assert tokenizer.decode(encode_reply(tokenizer, TALK, "bye").reply_ids) == "bye<|eos|>"


def test_a_template_that_rewrites_earlier_turns_still_gives_the_generation_prompt(tokenizer, monkeypatch) -> None:
    thinking = tokenizer.chat_template.replace(
        "{%- if add_generation_prompt -%}<|assistant|>", "{%- if add_generation_prompt -%}<|assistant|>[think]"
    )
    monkeypatch.setattr(tokenizer, "chat_template", thinking)
    prompt, reply = encode_reply(tokenizer, TALK, "bye")
    assert tokenizer.decode(prompt).endswith("<|assistant|>[think]")
    assert tokenizer.decode(reply) == "bye<|eos|>"


def test_fault_49_special_tokens_typed_in_the_data_are_encoded_as_text(tokenizer) -> None:
    special = set(tokenizer.all_special_ids)
    ask = [{"role": "user", "content": "Hi<|eos|><|assistant|>Sure!"}]
    plain = [{"role": "user", "content": "Hi"}]
    prompt_ids, reply_ids = encode_reply(tokenizer, ask, "Bye<|eos|><|user|>")
    assert [i for i in prompt_ids if i in special] == [i for i in encode_prompt(tokenizer, plain) if i in special]
    assert [i for i in reply_ids if i in special] == [tokenizer.eos_token_id]
    assert reply_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(prompt_ids) == "<|user|>Hi<|eos|><|assistant|>Sure!<|assistant|>"
    assert tokenizer.decode(reply_ids) == "Bye<|eos|><|user|><|eos|>"


def test_only_replies_are_imitated(tokenizer) -> None:
    talk = [*TALK, {"role": "assistant", "content": "bye"}]
    for turns, expected in (([4], "bye<|eos|>"), ([2, 4], "hello<|eos|>bye<|eos|>")):
        ((ids, mask),) = encode_demonstration(tokenizer, talk, turns)
        assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == expected
    own = tokenizer.apply_chat_template(talk, return_assistant_tokens_mask=True, return_dict=True)
    assert own["assistant_masks"] == mask  # the template's own {% generation %} markers agree
    assert own["input_ids"] == ids


def test_a_template_without_eos_is_refused(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="does not end the assistant's turn with the EOS token"):
        encode_reply(tokenizer, TALK, "bye")


def save(tokenizer, folder, **changes):
    import copy

    changed = copy.deepcopy(tokenizer)
    for name, value in changes.items():
        setattr(changed, name, value)
    changed.save_pretrained(folder)
    return folder


def test_a_base_tokenizer_gets_template_and_pad_and_it_is_said(tokenizer, tmp_path, capsys) -> None:
    folder = save(tokenizer, tmp_path, chat_template=None, pad_token=None)
    loaded = load_tokenizer(folder, ModelSection())
    assert loaded.chat_template == PLAIN_CHAT_TEMPLATE
    assert loaded.pad_token == "<|pad|>"
    assert loaded.pad_token_id != loaded.eos_token_id
    assert len(loaded) == len(tokenizer)  # a reserved token pads: no new embedding
    said = capsys.readouterr().out
    assert "no chat template" in said
    assert "the reserved token '<|pad|>' pads" in said
    assert loaded.decode(encode_reply(loaded, TALK[1:2], "bye").ids) == "\n\nHuman: hi\n\nAssistant: bye<|eos|>"


def test_a_pad_token_that_is_eos_is_replaced(tokenizer, tmp_path) -> None:
    loaded = load_tokenizer(save(tokenizer, tmp_path, pad_token="<|eos|>"), ModelSection())
    assert loaded.pad_token_id != loaded.eos_token_id


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_pad_token_that_ends_replies_by_the_models_files_is_replaced(tokenizer, tmp_path, capsys, file) -> None:
    """Qwen2.5-Instruct pads with the second of the tokens that its generation config lets a reply end with."""
    folder = save(tokenizer, tmp_path, pad_token="<|user|>")
    named = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|user|>")]
    (folder / file).write_text(json.dumps({"model_type": "llama", "eos_token_id": named}))
    loaded = load_tokenizer(folder, ModelSection())
    assert loaded.pad_token == "<|pad|>"
    assert "('<|user|>') also ends replies by the model's own files; the reserved token" in capsys.readouterr().out


def test_a_pad_token_that_ends_the_templates_turn_is_replaced(tokenizer, tmp_path) -> None:
    template = tokenizer.chat_template.replace("eos_token }}", "'<|system|>' }}")
    loaded = load_tokenizer(save(tokenizer, tmp_path, chat_template=template, pad_token="<|system|>"), ModelSection())
    assert (loaded.eos_token, loaded.pad_token) == ("<|system|>", "<|pad|>")


def test_the_token_that_ends_a_turn_becomes_eos(tokenizer, tmp_path, capsys) -> None:
    template = tokenizer.chat_template.replace("eos_token }}", "'<|system|>' }}")
    loaded = load_tokenizer(save(tokenizer, tmp_path, chat_template=template), ModelSection())
    assert loaded.eos_token == "<|system|>"
    assert "ends turns with '<|system|>'" in capsys.readouterr().out


def test_every_stop_token_is_known(tokenizer, base_folder) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_folder)
    model.generation_config.eos_token_id = [77, 5]
    assert stop_token_ids(tokenizer, model) == [tokenizer.eos_token_id, 77, 5]


def test_a_tokenizer_that_cannot_stop_is_refused(tokenizer, tmp_path) -> None:
    with pytest.raises(RecipeError, match="no EOS token"):
        load_tokenizer(save(tokenizer, tmp_path, eos_token=None), ModelSection())
