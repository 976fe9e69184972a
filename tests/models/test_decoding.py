"""What a model's generation config asks for changes nothing that is sampled."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from llm_rlhf.models.base import load_tokenizer
from llm_rlhf.models.decoding import DISTORTING, left_out, plain_decoding
from llm_rlhf.models.inference import load_roles, sample_replies
from llm_rlhf.recipe.sections import ModelSection

SETTINGS = {
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(40, 200)),
    "bad_words_ids": [[i] for i in range(200, 240)],
    "forced_eos_token_id": 0,
    "repetition_penalty": 5.0,
    "min_new_tokens": 8,
    "num_beams": 3,
}


@pytest.fixture
def replies(base_folder, tmp_path):
    """What a base says whose generation config has these settings, and that config."""

    def of(**settings):
        how = ModelSection(base=str(base_folder))
        tokenizer = load_tokenizer(base_folder, how)
        model = load_roles(base_folder, how, tokenizer, {})
        for name, value in settings.items():
            setattr(model.get_base_model().generation_config, name, value)
        asked = [[{"role": "user", "content": f"word {i}?"}] for i in range(6)]
        said = sample_replies(model, tokenizer, asked, [], response_length=12, temperature=1.0, seed=3)
        return [reply.ids for reply in said], model.get_base_model().generation_config

    return of


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_the_model_changes_a_reply(replies, name) -> None:
    plain, _ = replies()
    told, config = replies(**{name: SETTINGS[name]})
    assert told == plain
    assert getattr(config, name) == SETTINGS[name]  # the model keeps it, to be saved with it
    assert left_out(config) == {name: SETTINGS[name]}


def test_they_would_have_changed_it(base_folder) -> None:
    """Without the context, `generate` takes the model's own settings for those it is not given."""
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    ids = torch.arange(40, 52)[None]
    asked = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1)
    plain = model.generate(ids, generation_config=asked)
    model.generation_config.suppress_tokens = plain[0, 12:].tolist()
    assert not torch.equal(model.generate(ids, generation_config=asked), plain)
    with plain_decoding(model):
        assert torch.equal(model.generate(ids, generation_config=asked), plain)
    with pytest.raises(RuntimeError, match="on purpose"), plain_decoding(model):
        raise RuntimeError("on purpose")
    assert model.generation_config.suppress_tokens == plain[0, 12:].tolist()


def test_settings_that_change_nothing_are_not_named() -> None:
    assert left_out(GenerationConfig()) == {}
    assert left_out(GenerationConfig(repetition_penalty=1.0, num_beams=1, no_repeat_ngram_size=0, min_length=0)) == {}
    assert set(DISTORTING) <= set(vars(GenerationConfig()))  # fails where upstream renames one
