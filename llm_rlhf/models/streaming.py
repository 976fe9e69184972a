"""One reply, told token by token while it is sampled: the very reply that `sample_replies` gives to the same prompt."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from llm_rlhf.errors import RecipeError
from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.models.decoding import plain_decoding
from llm_rlhf.models.inference import Reply, reply_of, until_stop
from llm_rlhf.models.random_draws import Draw, prompt_uniforms
from llm_rlhf.models.thoughts import before_mark, read_response, thought_marks
from llm_rlhf.recipe.values import typed, unknown_choice

Tell = Callable[[str, str], None]  # is given the thought and the reply, as far as they go


@dataclass(frozen=True)
class Sampling:
    """How a reply is sampled."""

    temperature: float = 1.0  # 0 takes the likeliest token
    top_p: float = 1.0  # the likeliest tokens that have this share together; 1: all
    top_k: int = 0  # so many of the likeliest tokens; 0: all
    response_length: int = 128  # tokens at most
    seed: int = 0

    def changed(self, name: str, value: Any) -> "Sampling":
        """The same with one value changed, which may be text.

        Raises:
            RecipeError: for a name that is none, and a value that cannot be.
        """
        name = name.replace("-", "_").lower()
        known = {field.name: field.type for field in dataclasses.fields(self)}
        if name not in known:
            raise RecipeError(unknown_choice("what is set", name, list(known)).removeprefix("Recipe key "))
        try:
            value = typed(known[name], value, name)
        except RecipeError as error:
            raise RecipeError(str(error).removeprefix("Recipe key ")) from None
        lowest = {"response_length": 1, "seed": -math.inf}.get(name, 0)
        highest = 1 if name == "top_p" else math.inf
        if not (lowest <= value <= highest) or (name == "top_p" and value == 0) or value == math.inf:
            rule = {"top_p": "over 0 and at most 1", "response_length": "at least 1"}.get(name, "0 or more")
            raise RecipeError(f"{name} is {value}; it must be {rule}.")
        return dataclasses.replace(self, **{name: value})

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in vars(self).items())


class _Told(BaseStreamer):
    """Collects the tokens that `generate` puts, and tells what they say so far."""

    def __init__(self, tokenizer: Any, prompt_ids: list[int], tell: Tell) -> None:
        self.tokenizer, self.prompt_ids, self.tell = tokenizer, prompt_ids, tell
        self.closing = thought_marks(tokenizer).closing
        self.ids: list[int] | None = None  # None: the prompt is still to come

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.reshape(-1).tolist()
        said = read_response(self.tokenizer, self.prompt_ids, self.ids)
        # A character may want more tokens than have come, and a mark, too; so may the space before these.
        thought, reply = before_mark(said.thought.rstrip("\ufffd"), self.closing), said.reply.rstrip("\ufffd")
        self.tell(thought.rstrip(), reply.rstrip())

    def end(self) -> None: ...


class _Asked(StoppingCriteria):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.stop(), device=input_ids.device)


def stream_reply(
    model: Any,
    tokenizer: Any,
    prompt_ids: list[int],
    adapters: list[str],
    sampling: Sampling,
    tell: Tell,
    stop: Callable[[], bool] = lambda: False,
    occurrence: int = 0,
) -> Reply:
    """A reply from the base with these adapters (none: the reference).

    Args:
        tell: called after each token.
        stop: asked after each token whether to end the reply here.
        occurrence: how often the prompt was asked before.
    """
    stops = model.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops)
    length = sampling.response_length
    decoding = GenerationConfig(
        do_sample=False, max_new_tokens=length, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    ids = torch.tensor([prompt_ids], device=model.device)
    told = _Told(tokenizer, prompt_ids, tell)
    with torch.no_grad(), active_adapters(model, adapters), plain_decoding(model):
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=decoding,
            logits_processor=_processors(sampling, prompt_ids, occurrence),
            stopping_criteria=StoppingCriteriaList([_Asked(stop)]),
            streamer=told,
        )
    return reply_of(tokenizer, prompt_ids, until_stop(told.ids or [], stops), stops)


def _processors(sampling: Sampling, prompt_ids: list[int], occurrence: int) -> LogitsProcessorList:
    """What makes greedy decoding take the drawn token: the uniform numbers are `sample_replies`' own."""
    if sampling.temperature == 0:
        return LogitsProcessorList()
    found = LogitsProcessorList()
    if sampling.temperature != 1:
        found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    uniforms = prompt_uniforms(sampling.seed, prompt_ids, occurrence, sampling.response_length)
    found.append(Draw(1.0, torch.from_numpy(uniforms)[None]))
    return found
