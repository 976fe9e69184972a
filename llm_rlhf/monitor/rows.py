"""What a log gives people to do: replies to look at, as questions for the queue; and thumbs, as rows to train on."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.data.rows import mark_of_cut
from llm_rlhf.errors import DataError
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Added, Question, add
from llm_rlhf.monitor.log import Logged
from llm_rlhf.monitor.report import Monitored

MOST = 20  # rows for each reason
ASKS = ("rate", "annotate", "correct", "compare")
REASONS = {
    "thumbs_down": "thumbs down",
    "refused": "refused a request that may have been harmless",
    "lowest": "lowest scores",
    "disagreement": "reward models disagree",
}


def to_look_at(found: Monitored, most: int = MOST) -> list[tuple[int, list[str]]]:
    """Replies that a person should look at, each with its reasons; at most so many by each reason, the worst first.

    - thumbs_down: the newest first;
    - refused, where the log does not say that the request was harmful: those first that the reward models think least
    of; - lowest: by the held-out reward, or the reward where there is no other;
    - disagreement: the difference of reward and held-out reward, each over its standard deviation in the log; of an
      ensemble without a held-out model, the standard deviation of its members' scores.
    """
    replies, values = found.log.replies, found.read.values
    score = next((values[name] for name in ("heldout_reward", "reward") if name in values), None)
    reasons: dict[int, list[str]] = {}

    first: dict[str, int] = {}  # the same said to the same is looked at once

    def take(reason: str, ranked: Sequence[int]) -> None:
        taken = 0
        for i in ranked:
            one = first.setdefault(json.dumps([replies[i].prompt, replies[i].text]), int(i))
            if taken < most and reason not in reasons.setdefault(one, []):
                reasons[one].append(reason)
                taken += 1

    down = [i for i, reply in enumerate(replies) if reply.thumb is False]
    take("thumbs_down", sorted(down, key=lambda i: replies[i].when, reverse=True))
    refused = [i for i, reply in enumerate(replies) if values["refusal"][i] and reply.harmful is not True]
    take("refused", sorted(refused, key=lambda i: _last(score, i)))
    if score is not None:
        take("lowest", sorted(np.flatnonzero(np.isfinite(score)).tolist(), key=lambda i: float(score[i])))
    apart = _disagreement(found)
    if apart is not None:
        take("disagreement", sorted(np.flatnonzero(apart > 0).tolist(), key=lambda i: -float(apart[i])))
    order = list(REASONS)
    chosen = [(i, why) for i, why in reasons.items() if why]
    return sorted(chosen, key=lambda item: (order.index(item[1][0]), -len(item[1]), item[0]))


def _last(score: np.ndarray | None, i: int) -> float:
    return float(score[i]) if score is not None and np.isfinite(score[i]) else float("inf")


def _disagreement(found: Monitored) -> np.ndarray | None:
    values = found.read.values
    if "reward" in values and "heldout_reward" in values:
        scaled = [_scaled(values[name]) for name in ("reward", "heldout_reward")]
        return np.nan_to_num(np.abs(scaled[0] - scaled[1]))
    return None if found.read.members is None else np.nan_to_num(found.read.members.std(1, ddof=1))


def _scaled(values: np.ndarray) -> np.ndarray:
    spread = float(np.nanstd(values))
    return (values - np.nanmean(values)) / spread if spread > 0 else np.zeros_like(values)


def questions(found: Monitored, chosen: Sequence[tuple[int, list[str]]], kind: str = "rate") -> list[Question]:
    """What is asked of people about these replies. One that says nothing cannot be asked about, and is left out.

    Args:
        kind: rate, annotate or correct of the reply; compare it with the policy's own answer, where that was asked for
            and is another, else rate.
    """
    if kind not in ASKS:
        raise DataError(f"What is asked is {kind!r}; it is one of {', '.join(ASKS)}.")
    made = []
    for i, reasons in chosen:
        reply = found.log.replies[i]
        if not reply.text.strip():
            continue
        answers: list[dict[str, Any]] = [
            {"text": reply.text, "source": reply.model or "log", **mark_of_cut(reply.ended)}
        ]
        own, of_own = found.own.get(i, ("", {}))
        asks = kind
        if kind == "compare" and own.strip() and own != reply.text:
            answers.append({"text": own, "source": "policy", **mark_of_cut(of_own.get("eos_rate"))})
        elif kind == "compare":
            asks = "rate"
        made.append(
            Question(
                kind=asks,
                prompt=reply.prompt,
                answers=answers,
                objective="overall" if reply.harmful is None else "harmless" if reply.harmful else "helpful",
                strategy="monitor",
                facts={"reasons": reasons, "period": found.periods[i], "line": reply.line, **_known(found, i)},
            )
        )
    return made


def _known(found: Monitored, i: int) -> dict[str, Any]:
    scores = {name: found.read.values.get(name) for name in ("reward", "heldout_reward")}
    told = {name: float(of[i]) for name, of in scores.items() if of is not None and np.isfinite(of[i])}
    thumb = found.log.replies[i].thumb
    return told | ({} if thumb is None else {"thumb": thumb})


def thumbs(replies: Sequence[Logged]) -> list[dict[str, Any]]:
    """The replies with a thumb that say something, as rows that `data.ratings` reads: prompt, completion, label."""
    return [
        {
            "prompt": reply.prompt,
            "completion": [{"role": "assistant", "content": reply.text}],
            "label": reply.thumb,
            **mark_of_cut(reply.ended),
        }
        for reply in replies
        if reply.thumb is not None and reply.text.strip()
    ]


def write_rows(path: Path, rows: Sequence[Question] | Sequence[dict[str, Any]]) -> int:
    """As JSON lines; how many. A question is a line of what `feedback import` takes, without a label yet."""
    told = [_described(row) if isinstance(row, Question) else row for row in rows]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told), encoding="utf-8")
    return len(told)


def _described(question: Question) -> dict[str, Any]:
    told = ("kind", "prompt", "answers", "objective", "strategy", "facts")
    return {name: getattr(question, name) for name in told} | {"labels": []}


def to_queue(store: str, asked: Sequence[Question], details: dict[str, Any]) -> Added:
    """Put questions into a feedback store; what looks like personal data waits there for a lead."""
    database = Database.of(store)
    try:
        with database.write() as session:
            return add(session, asked, "monitor", details)
    finally:
        database.close()


def counted(chosen: Sequence[tuple[int, list[str]]]) -> dict[str, int]:
    """How many replies have each reason."""
    return dict(Counter(reason for _, reasons in chosen for reason in reasons))
