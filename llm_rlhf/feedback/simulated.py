"""Programs that label in people's places, through the same requests as the page's: they read, choose, and say it.

What they choose comes from a true score that the page does not know, with the noise and the habits of people:
Bradley-Terry in the difference of the scores, a liking for the left place or for the longer answer, and moments of
inattention. They are people of the store who are marked as simulated, and no table takes them for others.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx

from llm_rlhf.errors import RunError
from llm_rlhf.feedback.labels import STRENGTHS, from_scale

Score: TypeAlias = Callable[[list[dict[str, Any]], str], float]  # of a prompt's messages and a reply
PATIENCE = 30.0  # seconds for one answer of the server
MOST_WAITS = 60  # times that a server may ask to come later


@dataclass(frozen=True)
class Habits:
    """How somebody labels.

    The chance that the right one of two answers is preferred is sigmoid(d / noise - left + longer * w), with d the
    difference of the true scores, right less left, and w that of the words, by tens.
    """

    noise: float = 0.3  # in units of the score: a difference as large is seen 73 % of the time
    left: float = 0.0  # logits for whatever stands on the left
    longer: float = 0.0  # logits for every ten words more
    inattention: float = 0.0  # share of labels that are drawn blindly
    ties: float | None = None  # scores no further apart are called a tie, but where blind; None: nothing is

    def prefers_right(self, difference: float, longer_words: float) -> float:
        """The chance, in [0, 1]."""
        logit = difference / self.noise - self.left + self.longer * longer_words / 10
        seen = 1 / (1 + math.exp(-max(-50.0, min(50.0, logit))))
        return (1 - self.inattention) * seen + self.inattention / 2


@dataclass
class Simulated:
    """Somebody simulated: a true score, habits, and a stream of chance of their own."""

    score: Score
    habits: Habits = field(default_factory=Habits)
    seed: int = 0
    think: float = 0.0  # seconds before each choice, on average

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed} simulated")

    def say(self, task: dict[str, Any]) -> dict[str, Any]:
        """What they say of a task as the page hands it out, by the places on the page."""
        scores = [self.score(task["prompt"], answer["text"]) for answer in task["answers"]]
        kind = task["kind"]
        if kind in ("compare", "chat"):
            return self._compare(scores, [len(answer["text"].split()) for answer in task["answers"]])
        if kind == "rate":
            return {"helpful": self._points(scores[0]), "harmless": self._points(scores[0])}
        if kind == "rank":
            noisy = [score + self.rng.gauss(0, self.habits.noise) for score in scores]
            order = sorted(range(len(noisy)), key=lambda place: -noisy[place])
            return {"ranks": [order.index(place) + 1 for place in range(len(noisy))]}
        raise RunError(f"A simulated annotator compares, rates and ranks; the task is to {kind}.")

    def _compare(self, scores: Sequence[float], words: Sequence[int]) -> dict[str, Any]:
        difference = scores[1] - scores[0]
        if self.habits.ties is not None:
            blind = self.rng.random() < self.habits.inattention
            if abs(difference) <= self.habits.ties and not blind:
                return {"choice": "tie"}
        chance = self.habits.prefers_right(difference, words[1] - words[0])
        right = self.rng.random() < chance
        strength = min(len(STRENGTHS), 1 + int(abs(difference) / 0.5))
        half = len(STRENGTHS)
        return from_scale(half + strength if right else half + 1 - strength)

    def _points(self, score: float) -> int:
        """A true score of -1 is 1 point of 7, one of +1 is 7."""
        return max(1, min(7, round(4 + 3 * (score + self.rng.gauss(0, self.habits.noise)))))


@dataclass
class Said:
    """What one of them did."""

    acknowledged: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # assignment, label by page's places
    seconds: list[float] = field(default_factory=list)  # of every request, until its answer had come
    entering: int = 0  # of these requests, the first, up to the first question
    refused: int = 0  # requests to come later (429)
    lost: int = 0  # requests that no answer came to


class Client:
    """A log-in to a page, by an invitation's link.

    Args:
        patience: seconds for which a request that no answer came to is sent again. What was said twice is one label.

    Raises:
        RunError: where the server does not answer as the page does.
    """

    def __init__(self, url: str, token: str, patience: float = 0.0) -> None:
        self.patience = patience
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, headers={"Accept": "application/json", "Origin": url})
        self.said = Said()
        self.token = token
        entered = self._done("POST", f"/i/{token}")
        self.http.headers["X-CSRF-Token"] = entered["csrf"]
        if not entered["consent"]["agreed"]:
            self._done("POST", "/consent", {"version": entered["consent"]["version"]})

    def task(self, kind: str | None = None) -> dict[str, Any] | None:
        """The next task; None where nothing is left."""
        found: dict[str, Any] | None = self._done("GET", "/tasks" + (f"?kind={kind}" if kind else ""))["task"]
        return found

    def say(self, task: dict[str, Any], value: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Say it, and get the next task. It is in `said` once the server has acknowledged it."""
        after = self._done("POST", f"/tasks/{task['assignment']}", {"value": value, "seconds": seconds})
        self.said.acknowledged.append((task["assignment"], value))
        found: dict[str, Any] | None = after["task"]
        return found

    def close(self) -> None:
        self.http.close()

    def _done(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        give_up = time.monotonic() + self.patience
        waits = 0
        while True:
            began = time.monotonic()
            try:
                response = self.http.request(method, path, json=body)
            except httpx.TransportError as error:
                self.said.lost += 1
                if time.monotonic() > give_up:
                    raise RunError(f"The feedback page at {self.http.base_url} does not answer: {error}.") from None
                time.sleep(0.2)
                continue
            self.said.seconds.append(time.monotonic() - began)
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS or waits == MOST_WAITS:
                break
            waits += 1
            self.said.refused += 1
            time.sleep(float(response.headers.get("Retry-After", "1")))
        if not response.is_success:
            raise RunError(
                f"The feedback page at {self.http.base_url} answered {method} {path.split('/')[1]} with "
                f"{response.status_code}: {response.text[:200]}"
            )
        return response.json()


def work(client: Client, person: Simulated, limit: int | None = None, until: float | None = None) -> int:
    """Label until nothing is left, `limit` labels are said, or the clock (time.monotonic) is past `until`; how many."""
    count, task = 0, client.task()
    client.said.entering = len(client.said.seconds)
    while task is not None and (limit is None or count < limit) and (until is None or time.monotonic() < until):
        seconds = person.think * person.rng.uniform(0.5, 1.5)
        time.sleep(seconds)
        task = client.say(task, person.say(task), seconds)
        count += 1
    return count


def work_all(
    url: str,
    people: Iterable[tuple[str, Simulated]],
    limit: int | None = None,
    until: float | None = None,
    patience: float = 0.0,
) -> list[Said]:
    """All of them at once, each in a thread of their own, as `work`.

    Args:
        people: the token of each one's link, and who they are.

    Raises:
        RunError: what the first that failed had met.
    """
    found: list[Said] = []
    failed: list[RunError] = []

    def one(token: str, person: Simulated) -> None:
        try:
            client = Client(url, token, patience)
            found.append(client.said)
            try:
                work(client, person, limit, until)
            finally:
                client.close()
        except RunError as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found
