"""The sections of a recipe that bring people in: whose labels a run trains on, and rounds of asking and training."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class FeedbackSection:
    store: str  # whose labels are collected: a run's folder, a store's file, or the URL of a PostgreSQL database
    weight: float = 1.0  # of the collected rows beside those of `data` or `world`, as a source's
    # how much better people found a reply becomes the pair's margin in the loss: only beside pairs that all have one,
    # as the reward's scale, and with it what `kl_coef` is worth, would grow with the share of labels
    margins: bool = False
    leaks: Literal["error", "remove", "allow"] = "remove"  # collected rows that ask what evaluation asks, as a source's


@dataclass
class SimulatedSection:
    """Programs that label in people's places, by the world's true score (llm_rlhf/feedback/simulated.py)."""

    people: int = 4  # how many of them
    noise: float = 0.3  # in units of the true score: a difference as large is seen 73 % of the time
    left: float = 0.0  # log-odds for whatever stands on the left
    longer: float = 0.0  # log-odds for every ten words more
    inattention: float = 0.0  # share of labels that are drawn blindly
    ties: float | None = 0.05  # true scores no further apart are called a tie, but where blind; null: nothing is


@dataclass
class RoundsSection:
    """People compare the policy's answers, and the next policy learns from it (llm_rlhf/rounds/)."""

    count: int = 3  # runs in all, the first one included; `rounds: 3` says the same
    budget: int = 200  # comparisons that people are asked for between two rounds; 0, beside `imitation`: nobody is
    # which comparisons are asked; on the gold world choosing them (mixed) gained nothing over drawing them at random
    strategy: Literal["random", "disagreement", "margin", "diverse", "mixed"] = "random"
    # who answers beside the round's policy, as for `feedback select`; `start`: what its training began from
    policies: list[str] = field(default_factory=list)
    people_per_item: int = 1  # how many people each comparison is asked of; a budget of 200 is 100 comparisons by two
    annotators: Literal["people", "simulated"] = "people"  # simulated: by the true score of a `world`
    simulated: SimulatedSection = field(default_factory=SimulatedSection)
    store: str | None = None  # file or URL of the labels; None: feedback.db in the folder of the rounds
    enough: float = 0.9  # share of the comparisons asked for that must be labelled before the next round is trained
    initial_weight: float = 1.0  # of the recipe's own pairs from the second round on, times their sources' weights
    # of the labels of each round, the first's first; the last one goes on; what else the store holds (chats, what came
    # from files) weighs as the newest round's
    label_weight: float | list[float] = 1.0
    # Weight of pairs in which a demonstration is preferred to what the SFT model, and the policy of each round before,
    # say to its prompt. From the first round on, which may then do without pairs of the recipe's own; 0: none.
    imitation: float = 0.0
    # how much better people found a reply becomes the pair's margin in the loss: only beside pairs that all have one,
    # as the reward's scale, and with it what `kl_coef` is worth, would grow with the share of labels
    margins: bool = False
    # scratch: reward models and policy are trained from the start again, on all data; warm: from the promoted one
    retrain: Literal["scratch", "warm"] = "scratch"
    # Points of accuracy on the recipe's own held-out pairs that a new reward model must be shown not to have lost.
    reward_drop: float | None = 10.0
