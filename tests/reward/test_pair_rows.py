"""The rows a reward model is trained on, where its weight for length starts, and what is stored beside an adapter."""

import json
import shutil

import pytest
import torch

from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.models.encoding import encode_prompt
from llm_rlhf.models.inference import ids_to_score, reply_of
from llm_rlhf.recipe.sections import RewardOptions
from llm_rlhf.reward.loading import CALIBRATION, Loading, local_adapter, read_temperature, write_calibration
from llm_rlhf.reward.model import RewardModel
from llm_rlhf.reward.trainer import encode_pairs, starting_weight


def pair(chosen: str, rejected: str, **more: float) -> Preference:
    return Preference([{"role": "user", "content": "q"}], chosen, rejected, "helpful", Origin("here", 1), **more)


def test_a_column_is_there_where_some_pair_needs_it(tokenizer) -> None:
    """<|user|>, q, <|assistant|>, the reply's bytes, <|eos|>."""
    (plain,) = encode_pairs(tokenizer, [pair("yes", "n")], RewardOptions())
    assert {name: len(value) for name, value in plain.items() if name.endswith("_ids")} == {
        "chosen_ids": 7, "rejected_ids": 5
    }  # fmt: skip
    assert plain.keys() == {"chosen_ids", "rejected_ids", "length"}
    assert plain["length"] == 7
    rows = encode_pairs(tokenizer, [pair("a", "b", margin=1.5), pair("a", "b", confidence=0.75)], RewardOptions())
    assert [(row["margin"], row["confidence"]) for row in rows] == [(1.5, 1.0), (0.0, 0.75)]


def test_a_reply_that_was_cut_is_read_as_ppo_reads_what_it_sampled(tokenizer) -> None:
    """Up to its last token, with no end behind it."""
    prompt, end = pair("", "").prompt, tokenizer.eos_token_id
    (row,) = encode_pairs(tokenizer, [pair("yes", "n", chosen_stopped=False)], RewardOptions())
    sampled = tokenizer("yes", add_special_tokens=False)["input_ids"]
    cut = reply_of(tokenizer, encode_prompt(tokenizer, prompt), sampled, [end])
    assert not cut.stopped
    assert ids_to_score(tokenizer, [prompt], [cut]) == [row["chosen_ids"]]
    assert row["chosen_ids"][-1] != end == row["rejected_ids"][-1]
    assert row["length"] == 6


def test_the_weight_of_length_starts_where_length_explains_the_labels(tokenizer) -> None:
    """Three of four longer replies were chosen, each three bytes longer: gaps of one deviation.

    With x = tanh 1 the likelihood of 3 log s(wx) + log s(-wx) less the ridge w^2 / 2 is highest where
    x (3 - 4 s(wx)) = w.
    """
    rows = [pair("aaaa", "b")] * 3 + [pair("b", "aaaa")]
    options = RewardOptions(length_control="residual")
    encoded = encode_pairs(tokenizer, rows, options)
    x = torch.tensor(1.0, dtype=torch.float64).tanh().item()
    assert [row["length_feature"] for row in encoded] == pytest.approx([x, x, x, -x])
    weight = starting_weight(encoded, options)
    assert x * (3 - 4 * torch.sigmoid(torch.tensor(weight * x)).item()) == pytest.approx(weight, abs=1e-6)  # float32
    assert weight > 0.3
    assert starting_weight(encoded, RewardOptions()) == 0.0


@pytest.mark.parametrize(
    ("stored", "temperature"),
    [(None, 1.0), ({"temperature": 1.5}, 1.5), ({"temperature": None, "no_temperature": "x"}, None)],
)
def test_a_temperature_comes_back_as_it_was_found(tmp_path, stored, temperature) -> None:
    if stored is not None:
        write_calibration(tmp_path, stored)
        assert json.loads((tmp_path / CALIBRATION).read_text()) == stored
    assert read_temperature(tmp_path) == temperature


@pytest.mark.parametrize("stored", [{"temperature": 0}, {"temperature": None}, {"temperature": float("inf")}, {}])
def test_a_temperature_that_cannot_be_is_refused(tmp_path, stored) -> None:
    (tmp_path / CALIBRATION).write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="must be a positive number"):
        read_temperature(tmp_path)


def test_how_weights_are_loaded() -> None:
    assert Loading("torch.bfloat16", attn_implementation="eager").arguments("any/model") == {
        "dtype": torch.bfloat16, "trust_remote_code": False, "attn_implementation": "eager"
    }  # fmt: skip
    with pytest.raises(ValueError, match="dtype is 'float9'"):
        Loading("float9").arguments("any/model")
    with pytest.raises(ValueError, match="quantization is 'int4'; known: none, nf4, int8"):
        Loading(quantization="int4").arguments("any/model")


def test_a_folder_is_an_adapter_a_whole_model_or_neither(tmp_path) -> None:
    for name, file in (("adapter", "adapter_config.json"), ("whole", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    assert local_adapter(tmp_path / "adapter", None) == tmp_path / "adapter"
    assert local_adapter(tmp_path / "whole", None) is None
    joint = tmp_path / "run" / "reward" / "joint"
    joint.mkdir(parents=True)
    (joint / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"it is no reward model. These hold one: {joint}\."):
        local_adapter(tmp_path / "run", None)


def test_a_probability_is_the_logistic_function_of_the_scores_gap_over_the_temperature(reward_folder, tmp_path) -> None:
    """Two members, one twice, of temperatures 2 and 4: the mean of their gaps, each over its own."""
    folders = [shutil.copytree(reward_folder, tmp_path / name) for name in ("one", "two")]
    for folder, temperature in zip(folders, (2.0, 4.0), strict=True):
        write_calibration(folder, {"temperature": temperature})
    model = RewardModel.from_pretrained(folders)
    a, b = (model.score([("q", reply)])[0] for reply in ("yes", "no, no"))
    expected = torch.sigmoid(torch.tensor((a - b) * (1 / 2 + 1 / 4) / 2)).item()
    assert model.probability(["q"], ["yes"], ["no, no"])[0] == pytest.approx(expected, abs=1e-6)  # float32 scores
    assert model.doubt([("q", "yes")])[0] == pytest.approx(0.0, abs=1e-6)  # two of a kind
    assert abs(a - b) > 0.1
