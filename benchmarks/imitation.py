"""A reward learned from demonstrations against SFT alone, on the gold world, both from the same demonstrations.

Round by round, every demonstration is preferred to what SFT alone, and the policy of each round so far, says to its
prompt (`rounds.imitation`); reward models and policy are trained on all these pairs, the policy from the SFT model.
Nobody labels anything, and there are no other pairs.

    python benchmarks/imitation.py --folder runs/imitation --jobs 2     # 8 seeds of 2 rounds, twice; goes on
    python benchmarks/imitation.py --folder runs/imitation --report     # what is there, as benchmarks/IMITATION.md
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rounds import entry, rounds_of, run_one, with_interval

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 2
SEEDS = range(5, 13)  # of what is claimed; settings were chosen on others
ARMS = {  # name: heading, settings. What SFT makes of few leaves room to rise
    "300": ("300 demonstrations", ["world.demonstrations=300"]),
    "guarded": ("300 demonstrations, `ppo.side_guard=stop`", ["world.demonstrations=300", "ppo.side_guard=stop"]),
}
# All of them good. The rest as for the rounds of people (rounds.py).
SETTINGS = [
    "world.preferences=0", "world.good_share=1.0", "evaluate.snapshot_prompts=0", "evaluate.best_of_n=0",
    "reward.unit_deviation=true", "reward.num_train_epochs=4", "reward.ensemble=3", "ppo.total_episodes=3200",
    "ppo.kl_coef=0.3", "rounds.imitation=1", "rounds.budget=0", f"rounds.count={ROUNDS}",
]  # fmt: skip

CHOSEN = """## How the settings were chosen

By development phrasings, on seeds 0 and 1. Scores are true ones of SFT alone and of rounds 1 and 2.

- 1,200 demonstrations, four in five of them good: 0.72, 0.85, 0.49 at ppo.kl_coef 0.1 (seed 0 alone), and 0.72, 0.76,
  0.56 and 0.57, 0.61, 0.65 at 0.3. The demonstrations have a true score of 0.79 themselves, what SFT says to the same
  prompts 0.67, and what round 1 says 0.86 on seed 0 (0.74 on seed 1): of the pairs that differ 186 preferred the better
  and 368 the worse, and round 2 learned from both. Where the policy is as good as the demonstrations, stop.
- 1,200, all of them good: 0.91, 0.99, 0.89 and 0.90, 0.94, 0.95.
- 300, all of them good: 0.64, 0.64, 0.79 and 0.54, 0.72, 0.65. This was taken first, as it leaves the most room. When
  its evaluation was known, the same was run with `ppo.side_guard=stop`, and nothing else changed: in round 1 seeds 6,
  10 and 12 had come to refuse 56 to 77 % of the ordinary questions, and in round 2, whose pairs show those refusals as
  the worse, 9 to 16 % of the harmful ones. PPO had warned of both, before it began and at steps 28 to 56."""


def run(of: Path, seed: int, more: list[str]) -> None:
    """The rounds of a seed, where they are not there yet."""
    quickstart = str(ROOT / "recipes" / "quickstart.yaml")
    command = [sys.executable, "-m", "llm_rlhf", "run", quickstart, f"seed={seed}", f"output_dir={of}"]
    run_one(of, [*command, *SETTINGS, *more], ROUNDS)


def gather(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Of each seed that is whole: the true score of SFT alone and of each round, and each round's gain over it."""
    found: dict[str, Any] = {"seeds": [], "scores": [], "gains": [], "promoted": []}
    for seed in seeds:
        of = folder / f"seed-{seed}"
        rounds = rounds_of(of)
        if len(rounds) < ROUNDS:
            continue
        report = json.loads((of / "round-1" / "report.json").read_text())["estimates"]
        scores = [entry([e for e in report if e["subject"] == "base"], "gold_score")["estimate"]]
        found["seeds"].append(seed)
        found["scores"].append(scores + [entry(one["policy"], "gold_score")["estimate"] for one in rounds])
        found["gains"].append([entry(one["start"], "gold_gain") for one in rounds])
        found["promoted"].append([one["promoted"] for one in rounds])
    return found


def text(arms: dict[str, dict[str, Any]], phrasings: str, more: list[str]) -> str:
    """benchmarks/IMITATION.md, from what was found of each arm."""
    lines = [
        "# A reward from demonstrations, against SFT alone",
        "",
        f"Demonstrations that are all good, and no pairs but those of each demonstration and what the policy says; "
        f"{phrasings} phrasings; means over seeds with Student's 95 % interval.",
    ]
    for name, found in arms.items():
        lines += [
            "",
            f"## {ARMS[name][0]}, {len(found['seeds'])} seeds",
            "",
            *_means(found),
            "",
            *_each(found),
        ]
    shown = " ".join(["python benchmarks/imitation.py --folder runs/imitation", *more])
    return "\n".join([*lines, "", f"Made by `{shown}`.", "", CHOSEN]) + "\n"


def _means(found: dict[str, Any]) -> list[str]:
    lines = [
        "| | true score | over SFT alone | seeds in which that gain's own interval is above 0 | and under 0 |",
        "| --- | --- | --- | --- | --- |",
        f"| SFT alone | {with_interval([one[0] for one in found['scores']])} | | | |",
    ]
    for number in range(1, ROUNDS + 1):
        scores = with_interval([one[number] for one in found["scores"]])
        gains = [one[number - 1] for one in found["gains"]]
        above, under = sum(e["low"] > 0 for e in gains), sum(e["high"] < 0 for e in gains)
        gained = with_interval([e["estimate"] for e in gains])
        lines.append(f"| round {number} | {scores} | {gained} | {above} of {len(gains)} | {under} |")
    return lines


def _each(found: dict[str, Any]) -> list[str]:
    lines = ["| seed | SFT alone | " + " | ".join(f"round {n + 1}" for n in range(ROUNDS)) + " |"]
    lines.append("| --- | --- |" + " --- |" * ROUNDS)
    for seed, scores, promoted in zip(found["seeds"], found["scores"], found["promoted"], strict=True):
        marks = ["", *(" promoted" if one else "" for one in promoted)]
        cells = [f"{score:+.3f}{mark}" for score, mark in zip(scores, marks, strict=True)]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go, or are")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, each on a core of its own")
    parser.add_argument("--development", action="store_true", help="ask in the phrasings by which settings are chosen")
    parser.add_argument("--report", action="store_true", help="run nothing; write what is there")
    parser.add_argument("more", nargs="*", help="section.key=value, for every run")
    given = parser.parse_args()
    phrasings = "development" if given.development else "evaluation"
    asked = [(arm, seed) for arm in given.arms for seed in given.seeds]

    def begin(one: tuple[str, int]) -> None:
        arm, seed = one
        run(given.folder / arm / f"seed-{seed}", seed, [*ARMS[arm][1], f"world.phrasings={phrasings}", *given.more])

    if not given.report:
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(begin, asked))
    arms = {arm: gather(given.folder / arm, given.seeds) for arm in given.arms}
    arms = {arm: found for arm, found in arms.items() if found["seeds"]}
    if not arms:
        raise SystemExit(f"No seed is whole in {given.folder} yet.")
    told = text(arms, phrasings, given.more)
    print(told)
    if phrasings == "evaluation":
        (ROOT / "benchmarks" / "IMITATION.md").write_text(told)


if __name__ == "__main__":
    main()
