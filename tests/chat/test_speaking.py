"""Two voices as a speaker: each answer is the one its voice gives alone, though they grow by turns on one model."""

import dataclasses
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from model_helpers import random_policy_adapter

from llm_rlhf.chat.speaking import Voices, speaker_of
from llm_rlhf.chat.voices import Local
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.models.adapters import switches
from llm_rlhf.models.streaming import Sampling

ASK = [{"role": "user", "content": "why not?"}]
SHORT = Sampling(response_length=12)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory, base_folder) -> Voices:
    folder: Path = random_policy_adapter(base_folder, tmp_path_factory.mktemp("policy"), seed=5, r=4)
    found = speaker_of([subject_of(f"start={base_folder}"), subject_of(f"tuned={folder}")], None)
    assert found.sampling.response_length == 128, "as a chat samples where no run says otherwise"
    return Voices(found.pair, SHORT)


def alone(voice: Any, seed: int) -> str:
    """What the voice says with nobody beside it."""
    sampling = dataclasses.replace(SHORT, seed=seed)
    return Local(voice.subject, voice.base).answer(ASK, sampling, lambda *said: None).text


def as_it_was(speaker: Voices) -> list[Any]:
    model = speaker.pair[0].base.model
    return [*(layer._active_adapter for layer in switches(model)), model.get_base_model().generation_config]


def test_two_on_one_model_say_by_turns_what_each_says_alone(speaker) -> None:
    before = as_it_was(speaker)
    expected = [alone(voice, seed) for voice, seed in zip(speaker.pair, (7, 8), strict=True)]
    streams = speaker.answers(ASK, 7)
    pieces = list(itertools.zip_longest(*streams))
    first, second = ([said for said in side if said is not None] for side in zip(*pieces, strict=True))
    assert [first[-1].text, second[-1].text] == expected
    assert expected[0] != expected[1]
    assert all(said.ended for said in (first[-1], second[-1]))
    assert not any(said.ended for said in (*first[:-1], *second[:-1]))
    assert as_it_was(speaker) == before
    assert speaker.sources == ("start", "tuned")
    assert speaker.details["response_length"] == 12


def test_one_voice_asked_twice_says_two_things(speaker) -> None:
    twice = Voices([speaker.pair[1]], SHORT)
    first, second = ([*stream][-1].text for stream in twice.answers(ASK, 3))
    assert first != second
    assert twice.sources == ("tuned", "tuned")


def test_an_answer_that_nobody_wants_stops_and_leaves_the_model_as_it_was(speaker) -> None:
    before, threads = as_it_was(speaker), threading.active_count()
    one, other = speaker.answers(ASK, 7)
    beginning = [next(one), next(other), next(one)]
    assert threading.active_count() == threads + 2
    one.close()
    assert [*other][-1].text == alone(speaker.pair[1], 8), "the other goes on undisturbed"
    assert as_it_was(speaker) == before
    assert threading.active_count() == threads
    assert not beginning[-1].ended
    unstarted, _ = speaker.answers(ASK, 7)
    unstarted.close()
    assert threading.active_count() == threads


def test_what_cannot_be_answered_is_raised_where_it_is_pulled(speaker) -> None:
    stream, _ = speaker.answers([{"role": "user", "content": "x" * 300}], 1)
    with pytest.raises(DataError, match="too long for start"):
        next(stream)
