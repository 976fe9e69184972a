"""Alarms of PPO's own: values that explode, replies of which nothing is left to chance, a KL over its limit.

Each is judged from a rollout's means, before anything is learned from it, and told when it begins and when it is over.
What was told is kept in `alarms.json`, which the report reads, and in every checkpoint, so that a resumed run goes on
as if it had never stopped.
"""

from pathlib import Path
from typing import Any

from llm_rlhf.run_folder import write_json

ALARMS = "alarms.json"
WHAT = {"values": "value_alarm", "entropy": "entropy_alarm", "kl": "kl_limit"}  # and the key that bounds it


class TrainingAlarms:
    """Compares every rollout with the first.

    Values explode when their root mean square over a rollout is more than `value_alarm` times as large as the largest
    that rewards have had yet (the root mean square over a rollout of what a reply earns: score less KL penalty), and as
    their own in the first rollout. A value is an expected sum of rewards; one that is far beyond all that was ever paid
    expects nothing real. Entropy collapses when it falls below `entropy_alarm` of the first rollout's. An alarm is over
    at half of the values, or twice the entropy, that raise it, so that numbers close to a limit do not raise it often.

    Args:
        file: where the news are kept.
        value_alarm, entropy_alarm: None: not judged.
    """

    def __init__(self, file: Path, value_alarm: float | None, entropy_alarm: float | None) -> None:
        self.file, self.value_alarm, self.entropy_alarm = file, value_alarm, entropy_alarm
        self.first: dict[str, float] = {}  # the first rollout's `values` and `entropy`
        self.rewards = 0.0  # the largest root mean square of a rollout yet
        self.news: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"first": dict(self.first), "rewards": self.rewards, "news": [dict(one) for one in self.news]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first, self.rewards, self.news = dict(state["first"]), state["rewards"], [*state["news"]]

    @property
    def raised(self) -> list[str]:
        """What is wrong now: `values`, `entropy`, `kl`."""
        last = {one["what"]: one["began"] for one in self.news}
        return [what for what, began in last.items() if began]

    def see(self, step: int, metrics: dict[str, float]) -> list[dict[str, Any]]:
        """Take in a rollout's means (`val/rms`, `objective/rlhf_reward_rms`, `objective/entropy`); returns the news.

        Args:
            step: the optimizer step before it.
        """
        values, entropy = metrics["val/rms"], metrics["objective/entropy"]
        self.rewards = max(self.rewards, metrics["objective/rlhf_reward_rms"])
        if not self.first:
            self.first = {"values": values, "entropy": entropy}
            return []
        news = []
        if self.value_alarm is not None:
            limit = self.value_alarm * max(self.rewards, self.first["values"])
            limit *= 0.5 if "values" in self.raised else 1.0
            told = f"their root mean square is {values:.3g}, where no rollout's rewards came to more than"
            news += self._turn(
                "values", values > limit > 0, step, f"{told} {self.rewards:.3g}",
                f"PPO's values have exploded: {told} {self.rewards:.3g} (ppo.value_alarm is {self.value_alarm:g}, "
                f"optimizer step {step}). Advantages mean nothing then; lower ppo.learning_rate or ppo.vf_coef, or set "
                "ppo.score_normalization: whiten.",
            )  # fmt: skip
        if self.entropy_alarm is not None:
            limit = self.entropy_alarm * (2.0 if "entropy" in self.raised else 1.0)
            share = entropy / self.first["entropy"] if self.first["entropy"] > 0 else 1.0
            told = f"{entropy:.3g} nats a token, {100 * share:.2g} % of the first rollout's {self.first['entropy']:.3g}"
            news += self._turn(
                "entropy", share < limit, step, told,
                f"The policy's entropy has collapsed: {told} (ppo.entropy_alarm is {self.entropy_alarm:g}, optimizer "
                f"step {step}). It says nearly the same every time; raise ppo.kl_coef, lower ppo.learning_rate, or "
                "train less.",
            )  # fmt: skip
        return news

    def kl_over(self, step: int, kl: float, limit: float) -> None:
        """Keep that the KL's limit has stopped the training."""
        text = (
            f"PPO was stopped at optimizer step {step}: the rollout's KL to the reference, {kl:.3g} nats per response, "
            f"was over ppo.kl_limit ({limit:g}). The policy is the one before this rollout."
        )
        self.news.append({"what": "kl", "began": True, "step": step, "text": text})

    def write(self) -> None:
        """Called on the main process."""
        write_json(self.file, {"news": self.news, "raised": self.raised})

    def _turn(self, what: str, wrong: bool, step: int, told: str, alarm: str) -> list[dict[str, Any]]:
        """The news, if there is any: that it begins, or is over."""
        if wrong == (what in self.raised):
            return []
        text = alarm if wrong else f"{what.capitalize()}: no alarm any more at optimizer step {step} ({told})."
        one = {"what": what, "began": wrong, "step": step, "text": text}
        self.news.append(one)
        return [one]
