"""A model behind an OpenAI-compatible endpoint as the judge.

Two ways to read its answer, of which the first that works is taken for all:

1. `logprobs`: it is asked for one letter, and the probabilities of "A" and "B" among the most probable first tokens are
   the verdict. vLLM, llama.cpp and OpenAI's older models report them.
2. `text`: it compares in a few sentences and ends with a line `Verdict: A`, `Verdict: B` or `Verdict: tie`. For
   servers that report none (`transformers serve` takes the field and ignores it, OpenAI's reasoning models refuse it)
   and for models that begin with something else, such as thoughts.

Sources: the logprobs of vLLM's `ChatCompletionLogProbs` (-9999 stands for "not among them") and of OpenAI's reference;
AlpacaEval reads the letters among the first five tokens too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from llm_rlhf.data.rows import Conversation
from llm_rlhf.evaluation.chat_wire import Answer, EndpointError
from llm_rlhf.evaluation.endpoints import Endpoint, Failure
from llm_rlhf.evaluation.judges.prompts import (
    GRADES,
    LETTERS,
    compare_prompt,
    declines,
    grade_of,
    grade_prompt,
    prompt_identity,
    read_grade,
    read_verdict,
    verdict_of,
)
from llm_rlhf.evaluation.judges.protocol import Cost, JudgeError, Pair, Reading, Response

TOP = 5  # tokens reported: all that older vLLM servers give, and enough for two letters
LEAST_SHARE = 0.5  # of the first token's probability that must be on the answers asked for
LETTER_TOKENS = 8  # one would do for the letter; more show what a judge says that refuses
TRIES = 3  # questions asked before the way of reading is chosen

Way = Literal["logprobs", "text"]


class _Task(NamedTuple):
    """Comparing or grading: what is asked each way, and how the answers are read."""

    questions: dict[str, list[Conversation]]  # by way
    answers: Sequence[str]
    value_of: Callable[[list[float]], float]
    read: Callable[[str], float | None]


class EndpointJudge:
    """Judges by asking an endpoint, at temperature 0.

    Args:
        reading: "logprobs" or "text"; "auto" tries the first questions with log-probabilities and says which it took.
        max_tokens: of an answer in text; thoughts count.
        temperature: None where the server does not take one; then it is whatever the server has.
        seed: None sends none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        reading: Literal["auto", "logprobs", "text"] = "auto",
        max_tokens: int = 1024,
        temperature: float | None = 0.0,
        seed: int | None = None,
    ) -> None:
        self.endpoint, self.max_tokens, self.temperature, self.seed = endpoint, max_tokens, temperature, seed
        self.reading: Way | None = None if reading == "auto" else reading

    def identity(self) -> dict[str, Any]:
        decoding = {"temperature": self.temperature, "seed": self.seed, "max_tokens": self.max_tokens}
        return {
            **self.endpoint.identity(),
            "prompt": prompt_identity(),
            "reading": self.reading,
            "decoding": decoding | ({"max_tokens": LETTER_TOKENS} if self.reading == "logprobs" else {}),
        }

    def read_pairs(self, pairs: Sequence[Pair], progress: str | None, most_failures: int) -> list[Reading]:
        questions = {
            way: [compare_prompt(pair.prompt, pair.a, pair.b, pair.rubric, ask) for pair in pairs]
            for way, ask in (("logprobs", "letter"), ("text", "verdict"))
        }
        return self._read(_Task(questions, LETTERS, verdict_of, read_verdict), progress, most_failures)

    def read_responses(self, rows: Sequence[Response], progress: str | None, most_failures: int) -> list[Reading]:
        """Grades from 1 to 5: the expected one by log-probabilities, the written one in text."""
        questions = {
            way: [grade_prompt(row.prompt, row.response, row.rubric, ask) for row in rows]
            for way, ask in (("logprobs", "digit"), ("text", "grade"))
        }
        return self._read(_Task(questions, GRADES, grade_of, read_grade), progress, most_failures)

    def _read(self, task: _Task, progress: str | None, most_failures: int) -> list[Reading]:
        if self.reading is None:
            self.reading = self._chosen_way(task)
        outcomes = self._asked(task.questions[self.reading], self.reading, progress, most_failures)
        return [self._reading(outcome, task, self.reading) for outcome in outcomes]

    def _chosen_way(self, task: _Task) -> Way:
        """`logprobs` where one of the first questions can be read so, else `text`."""
        outcomes = self._asked(task.questions["logprobs"][:TRIES], "logprobs", None, TRIES)
        if any(self._reading(outcome, task, "logprobs").value is not None for outcome in outcomes):
            return "logprobs"
        # A server that is down says nothing about how to read it; one that refuses the field does.
        down = [o for o in outcomes if isinstance(o, Failure) and o.kind != "refused" and "logprobs" not in o.reason]
        if len(down) == len(outcomes):
            raise JudgeError(f"The judge did not answer its first {len(down)} questions: {down[0].reason}")
        return "text"

    def _asked(
        self, questions: Sequence[Conversation], way: Way, progress: str | None, most_failures: int
    ) -> list[Answer | Failure]:
        try:
            return self.endpoint.answers(
                questions,
                max_tokens=LETTER_TOKENS if way == "logprobs" else self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
                top_logprobs=TOP if way == "logprobs" else 0,
                progress=progress,
                most_failures=most_failures,
            )
        except EndpointError as error:
            raise JudgeError(f"The judge cannot be asked. {error}") from None

    def _reading(self, outcome: Answer | Failure, task: _Task, way: Way) -> Reading:
        if isinstance(outcome, Failure):
            return Reading(None, outcome.kind, outcome.reason, Cost(requests=1, retries=outcome.retries))
        cost = Cost(
            requests=1,
            cached=int(outcome.cached),
            retries=outcome.retries,
            prompt_tokens=outcome.prompt_tokens or 0,
            completion_tokens=outcome.completion_tokens or 0,
            uncounted=int(outcome.completion_tokens is None),
        )
        if not outcome.refused:
            value = _by_logprobs(outcome, task) if way == "logprobs" else task.read(outcome.text)
            if value is not None:
                return Reading(value, cost=cost)
        failure = "refused" if outcome.refused or declines(outcome.text) else "unparsable"
        said = " ".join(outcome.text.split())
        cut = f" (cut at {self.max_tokens} tokens)" if way == "text" and outcome.finish_reason == "length" else ""
        return Reading(None, failure, f"the judge said {said[-300:]!r}{cut}", cost)


def _by_logprobs(answer: Answer, task: _Task) -> float | None:
    """The value by the first token that is not blank; None where the answers asked for are not what it mostly is.

    An answer that is not among the tokens reported counts as impossible: it is less probable than all of them.
    """
    first = next((token for token in answer.logprobs or [] if _bare(token.text)), None)
    if first is None:
        return None
    top = first.top or {first.text: first.logprob}
    shares = [
        sum(math.exp(logprob) for text, logprob in top.items() if _bare(text) == wanted) for wanted in task.answers
    ]
    if sum(shares) < LEAST_SHARE:
        return None
    return task.value_of([math.log(share) if share > 0 else -math.inf for share in shares])


def _bare(token: str) -> str:
    """A token's text without blanks, of which some servers leave the vocabulary's own signs (vLLM #16838)."""
    return token.strip().strip("▁ĠĊ").strip()
