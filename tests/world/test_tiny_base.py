"""The tiny base model: its tokenizer and template, that it can be read back, and that a seed gives the same weights."""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_rlhf.data.rows import Conversation
from llm_rlhf.models.encoding import encode_prompt, encode_reply
from llm_rlhf.recipe.sections import WorldSection
from llm_rlhf.world.base_model import make_tiny_base, shipped_base
from llm_rlhf.world.gold import GoldWorld

SMALL = {"vocabulary": 512, "layers": 1, "width": 32, "epochs": 3, "batch_size": 8}
TALK: Conversation = [
    {"role": "system", "content": "answer in few words."},
    {"role": "user", "content": "what does the fox eat?"},
    {"role": "assistant", "content": "the fox eats figs."},
    {"role": "user", "content": "and the owl?"},
    {"role": "assistant", "content": "the owl eats nuts."},
]


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return GoldWorld(WorldSection(entities=3), seed=0).corpus(160)


@pytest.fixture(scope="module")
def folder(conversations: list[Conversation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tiny_base(conversations, folder, 0, **SMALL)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_tokenizer_has_512_tokens_and_pads_on_the_left_with_a_token_of_its_own(tokenizer: Any) -> None:
    assert len(tokenizer) == 512
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"
    batch = tokenizer.pad({"input_ids": [[7, 8, 9], [7]]}, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_any_text_survives_encoding_and_decoding(tokenizer: Any) -> None:
    for text in (" the fox eats figs.", " Füchse, 狐 & <b>\t\n", " 'quoted'  twice"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_assistant_turn_ends_in_the_eos_token_and_nothing_after_it(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert text == (
        "<|system|> answer in few words.<|user|> what does the fox eat?<|assistant|> the fox eats figs.<|end|>"
        "<|user|> and the owl?<|assistant|> the owl eats nuts.<|end|>"
    )
    assert tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"][-1] == tokenizer.eos_token_id
    opened = tokenizer.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True)
    assert opened == "<|system|> answer in few words.<|user|> what does the fox eat?<|assistant|>"


def test_generation_markers_cover_the_replies_and_their_eos_tokens_alone(tokenizer: Any) -> None:
    encoded = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == " the fox eats figs.<|end|> the owl eats nuts.<|end|>"


def test_prompt_and_reply_are_what_generation_and_training_see(tokenizer: Any) -> None:
    encoded = encode_reply(tokenizer, TALK[:2], "the fox eats figs.")
    assert encoded.prompt_ids == encode_prompt(tokenizer, TALK[:2])
    assert tokenizer.decode(encoded.reply_ids) == " the fox eats figs.<|end|>"
    assert encode_reply(tokenizer, TALK[:2], tokenizer.decode(encoded.reply_ids[:-1])) == encoded


def test_model_loads_and_stops_at_its_eos_token(folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] <= ids["input_ids"].shape[1] + 4


def test_the_default_size_is_about_half_a_million_parameters(conversations: list[Conversation], tmp_path: Path) -> None:
    make_tiny_base(conversations[:8], tmp_path, 0, epochs=1, batch_size=8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert 0.4e6 < model.num_parameters() < 0.7e6
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (4, 96)


def test_the_first_weights_are_as_wide_as_asked(conversations: list[Conversation], tmp_path: Path) -> None:
    """Of 16,384 embeddings the standard deviation is known to .6 %, three times that is allowed; nothing is learned."""
    make_tiny_base(conversations[:8], tmp_path, 0, **SMALL, learning_rate=0.0, initializer_range=0.2)  # type: ignore[arg-type]
    embeddings = AutoModelForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight
    assert embeddings.std().item() == pytest.approx(0.2, rel=0.018)


@pytest.mark.slow
def test_one_seed_gives_one_model_and_another_seed_another(
    conversations: list[Conversation], folder: Path, tmp_path: Path
) -> None:
    make_tiny_base(conversations, tmp_path / "again", 0, **SMALL)  # type: ignore[arg-type]
    make_tiny_base(conversations, tmp_path / "other", 1, **SMALL)  # type: ignore[arg-type]
    assert _weights(tmp_path / "again") == _weights(folder)
    assert _weights(tmp_path / "other") != _weights(folder)
    same = [(f / "tokenizer.json").read_bytes() for f in (folder, tmp_path / "again", tmp_path / "other")]
    assert same[0] == same[1] == same[2]  # the tokenizer depends on the conversations alone


def test_training_lowers_the_loss_below_guessing(
    folder: Path, tokenizer: Any, conversations: list[Conversation]
) -> None:
    """Sixty steps take the loss well below ln(512) = 6.24, what a uniform guess over the vocabulary costs."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(conversations[0], return_dict=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss < 5


def test_the_shipped_base_speaks_the_language_of_the_world() -> None:
    """Of a fair sample of new conversations it finds every token more probable, by far, than a uniform guess would."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_base())
    model = AutoModelForCausalLM.from_pretrained(shipped_base(), dtype=torch.float32)
    assert model.num_parameters() < 0.7e6
    losses = []
    for talk in GoldWorld(WorldSection(entities=12), seed=1).corpus(50):
        ids = tokenizer.apply_chat_template(talk, return_dict=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert sum(losses) / len(losses) < math.log(len(tokenizer)) / 4


def test_every_word_of_the_world_is_a_token_of_the_shipped_base() -> None:
    """Shorter sequences for every stage; a word of the phrase book that is new to it calls for data/base/make.py."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_base())
    world = GoldWorld(WorldSection(entities=12, phrasings="evaluation"), seed=0)
    words = {
        w for p in world.evaluation_prompts() for turn in p.messages for w in re.findall("[a-z]+", turn["content"])
    }
    assert [word for word in sorted(words) if len(tokenizer(f" {word}")["input_ids"]) > 1] == []


def test_a_conversation_too_long_for_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reads 16"):
        make_tiny_base([TALK], tmp_path, 0, context=16)


def _weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
