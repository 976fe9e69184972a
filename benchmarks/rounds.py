"""Rounds of feedback on the gold world: does the true score rise from round to round, and does choosing pay?

From 1,500 pairs, three rounds; between two rounds simulated people label so many of the policy's answers through the
feedback page. Two arms at equal budget: `mixed`, and `random`, which is the default since. Round 1 of a seed is the
same in both.

    python benchmarks/rounds.py --folder runs/rounds                    # an hour or more on a free core; goes on
    python benchmarks/rounds.py --folder runs/rounds --report           # what is there, as benchmarks/ROUNDS.md
    ATEN_CPU_CAPABILITY=avx2 python benchmarks/rounds.py --folder runs/rounds-avx2 --seeds 12 13 14 15 16

Settings were chosen by phrasings of development (--development), what is claimed is measured by those of evaluation.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from llm_rlhf.statistics.clustered import student_quantile

ARMS = ("mixed", "random")
ROUNDS = 3
SEEDS = range(5, 10)  # of what is claimed; settings were chosen on others
ROOT = Path(__file__).resolve().parents[1]
# A start with room to rise: three initial labels in ten are flipped, fewer than crowdworkers and researchers disagree
# on (Bai et al. 2022, arXiv:2204.05862). A reward on one scale in all rounds, so that kl_coef means the same in
# each, of three models that have read their pairs four times. People compare the policy with what its training began
# from: its own two answers are mostly alike, and show no longer what it has unlearned. A policy that is kept near that
# start, as a reward model of so few noisy pairs is soon exploited: how far it comes then tells how good the reward is.
SETTINGS = [
    "world.preferences=1500", "world.label_noise=0.3", "world.prompts=8000", "evaluate.snapshot_prompts=0",
    "evaluate.best_of_n=0", "rounds.annotators=simulated", "rounds.policies=[start]", "reward.unit_deviation=true",
    "reward.num_train_epochs=4", "reward.ensemble=3", "ppo.total_episodes=3200", "ppo.kl_coef=0.3",
]  # fmt: skip

CHOSEN = """## How the settings were chosen

By development phrasings, on seeds 0, 10 and 11. Scores are true ones of rounds 1, 2 and 3.

- Seed 0, one reward model that read its pairs twice, a tenth of the labels flipped. Labels that were coins where two
  answers are equally good, or whose strengths were margins in the loss: -0.11 in round 2, as the reward's scale, and
  with it what kl_coef is worth, changed between rounds. So margins stay out (`rounds.margins`), and the reward has unit
  deviation. With both 0.87, 0.91, 0.83, and 0.96 in rounds 1 and 3 where PPO went on for 3,200 episodes.
- Seeds 10 and 11, the reward model alone, on pairs of the SFT model's answers whose true scores differ: right on 78 and
  78 % after two passes, 85 and 81 after four, 83 and 77 after four at a third of the learning rate, 88 and 83 as an
  ensemble of three. With that ensemble and 3,200 episodes 1,500 pairs brought 1.01 and 0.86, 6,000 pairs 1.04 and
  1.02: little to rise by, and no more in a valley of twelve animals (0.96 and 0.84; 1.00 on one seed).
- Three in ten labels flipped: 0.62 and 0.48 in round 1. With 600 labels on two answers of the policy's own: 0.62,
  -0.15 (it refused everything) and 0.48, 0.67, 1.03; of these labels 60 and 39 % made pairs, the others were ties, and
  no answer showed that refusing a harmless question is wrong. With 1,500 labels and the ensemble's mean less its
  deviation 0.65, 0.51; with two in ten flipped 0.78, 0.80. Against what training began from, with 1,500 labels: 0.48,
  0.98, and, with two in ten flipped, 0.78, 1.05; 70 % of the labels made pairs.
- So, with 600 labels, on the evaluation phrasings: seed 0 came from 0.92 to -0.14 in round 2, at a distance of 6.8
  nats, refusing 95 % of ordinary questions (PPO's guard had warned at step 56, and the gates kept it back), seed 1 from
  0.52 to 0.97. These runs were ended there, and are not among the above.
- kl_coef 0.3 in place of 0.1, and 1,000 labels: 0.66, 0.80 and 0.61, 0.84. This was taken, to seeds that had not been
  looked at.
- The five seeds on AVX2 were run when those on AVX512 were known, with nothing changed. That rounds ask at random by
  default was decided by them.
- Weights of `mixed`: the variance between models, times that of the label, taken of eight formulas that were compared
  on one pool of 833 candidates. Of 2,212 candidates a uniform draw had 55 % ties and the reward model wrong on 22 % of
  the rest; what `mixed` drew beside it 49 % and 27 %. By small margins alone it would have drawn more ties than a
  uniform draw (of another 833: 62 % against 60 %)."""


def command(folder: Path, seed: int, count: int, strategy: str, budget: int, more: list[str]) -> list[str]:
    """What a user would give."""
    return [
        sys.executable, "-m", "llm_rlhf", "run", str(ROOT / "recipes" / "quickstart.yaml"), f"seed={seed}",
        f"output_dir={folder}", f"rounds.count={count}", f"rounds.strategy={strategy}", f"rounds.budget={budget}",
        *SETTINGS, *more,
    ]  # fmt: skip


def run(folder: Path, seeds: Sequence[int], budget: int, more: list[str], jobs: int) -> None:
    """Every seed and arm that is not there yet, so many at a time."""

    def begin(seed: int) -> None:
        run_one(folder / f"first-{seed}", command(folder / f"first-{seed}", seed, 1, "mixed", budget, more), 1)

    def go_on(of_seed: tuple[int, str]) -> None:
        seed, arm = of_seed
        of = folder / f"{arm}-{seed}"
        if not (of / "round-1").is_dir():
            of.mkdir(parents=True, exist_ok=True)
            shutil.copytree(folder / f"first-{seed}" / "round-1", of / "round-1.partial", dirs_exist_ok=True)
            (of / "round-1.partial").rename(of / "round-1")
        run_one(of, command(of, seed, ROUNDS, arm, budget, more), ROUNDS)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(begin, seeds))
        list(pool.map(go_on, itertools.product(seeds, ARMS)))


def run_one(folder: Path, asked: list[str], count: int) -> None:
    """Give a command on one core, where its folder has not so many rounds yet; what it prints goes into its log."""
    if len(rounds_of(folder)) >= count:
        return
    folder.mkdir(parents=True, exist_ok=True)
    print(" ".join(asked[2:]), flush=True)
    with (folder / "log").open("a") as log:
        one_core = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(asked, check=True, stdout=log, stderr=subprocess.STDOUT, env=one_core)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """The finished rounds of a folder."""
    path = folder / "rounds.json"
    return json.loads(path.read_text())["rounds"] if path.is_file() else []


def entry(estimates: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(e for e in estimates if e["name"] == name and e["split"] == "all")


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and Student's 95 % interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = student_quantile(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def gather(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """By arm and round: the true score of each seed, and what each round gained over the one before."""
    found: dict[str, Any] = {"seeds": [], "score": {}, "gain": {}, "within": {}, "promoted": {}}
    whole = [s for s in seeds if all(len(rounds_of(folder / f"{arm}-{s}")) == ROUNDS for arm in ARMS)]
    found["seeds"] = whole
    for arm in ARMS:
        records = [rounds_of(folder / f"{arm}-{seed}") for seed in whole]
        scores = [[entry(record["policy"], "gold_score")["estimate"] for record in one] for one in records]
        found["score"][arm] = scores
        found["gain"][arm] = [[b - a for a, b in itertools.pairwise(one)] for one in scores]
        found["within"][arm] = [
            [entry(record["gains"][str(record["round"] - 1)], "gold_gain") for record in one[1:]] for one in records
        ]
        found["promoted"][arm] = [[record["promoted"] for record in one] for one in records]
    return found


def text(kinds: dict[str, dict[str, Any]], budget: int, phrasings: str, more: list[str]) -> str:
    """benchmarks/ROUNDS.md.

    Args:
        kinds: what was found, by the vector instructions of the CPU.
    """
    lines = [
        "# Rounds of feedback on the gold world",
        "",
        f"{ROUNDS} rounds from 1,500 initial pairs, three in ten of them flipped, and {budget:,} labels by simulated "
        f"people between two rounds; reward models and policy are trained from the start in each; {phrasings} "
        "phrasings. Means over seeds with Student's 95 % interval.",
    ]
    for kind, found in kinds.items():
        lines += ["", f"## {len(found['seeds'])} seeds, {kind}", "", *_means(found), "", *_each(found)]
    if len(kinds) > 1:
        together = _together(list(kinds.values()))
        lines += ["", f"## All {len(together['seeds'])} seeds", "", *_means(together)]
    shown = " ".join(["python benchmarks/rounds.py --folder runs/rounds", f"--budget {budget}", *more])
    lines += ["", f"Made by `{shown}`, for each kind of CPU; `ATEN_CPU_CAPABILITY=avx2` stands for one.", "", CHOSEN]
    return "\n".join(lines) + "\n"


def with_interval(values: list[float]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval(values))


def _means(found: dict[str, Any]) -> list[str]:
    """The tables of means over seeds: each arm's rounds, and one arm less the other."""
    seeds = found["seeds"]
    lines = [
        "| arm | round | true score | over the round before | seeds in which that gain's own interval is above 0 "
        "| over the first |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm in ARMS:
        for number in range(ROUNDS):
            scores = [one[number] for one in found["score"][arm]]
            gains = with_interval([one[number - 1] for one in found["gain"][arm]]) if number else ""
            above = sum((one[number - 1]["low"] or 0) > 0 for one in found["within"][arm])
            shown = f"{above} of {len(seeds)}" if number else ""
            first = with_interval([one[number] - one[0] for one in found["score"][arm]]) if number else ""
            lines.append(f"| {arm} | {number + 1} | {with_interval(scores)} | {gains} | {shown} | {first} |")
    lines += ["", "| mixed less random, paired by seed | true score |", "| --- | --- |"]
    for number in range(1, ROUNDS):
        apart = [a[number] - b[number] for a, b in zip(*(found["score"][arm] for arm in ARMS), strict=True)]
        lines.append(f"| round {number + 1} | {with_interval(apart)} |")
    return lines


def _each(found: dict[str, Any]) -> list[str]:
    lines = ["| seed | arm | " + " | ".join(f"round {n + 1}" for n in range(ROUNDS)) + " |"]
    lines.append("| --- | --- |" + " --- |" * ROUNDS)
    for place, seed in enumerate(found["seeds"]):
        for arm in ARMS:
            cells = [
                f"{score:+.3f}{' promoted' if promoted else ''}"
                for score, promoted in zip(found["score"][arm][place], found["promoted"][arm][place], strict=True)
            ]
            lines.append(f"| {seed} | {arm} | " + " | ".join(cells) + " |")
    return lines


def _together(several: list[dict[str, Any]]) -> dict[str, Any]:
    """What was found on several kinds of CPU, as one."""
    return {"seeds": [seed for one in several for seed in one["seeds"]]} | {
        name: {arm: [row for one in several for row in one[name][arm]] for arm in ARMS}
        for name in ("score", "gain", "within", "promoted")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go, or are")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on a core of its own")
    parser.add_argument("--budget", type=int, default=1000, help="labels between two rounds")
    parser.add_argument("--development", action="store_true", help="ask in the phrasings by which settings are chosen")
    parser.add_argument("--report", action="store_true", help="run nothing; write what is there")
    parser.add_argument("more", nargs="*", help="section.key=value, for every run")
    given = parser.parse_args()
    phrasings = "development" if given.development else "evaluation"
    if not given.report:
        run(given.folder, given.seeds, given.budget, [f"world.phrasings={phrasings}", *given.more], given.jobs)
    found = gather(given.folder, given.seeds)
    if not found["seeds"]:
        raise SystemExit(f"No seed is whole in {given.folder} yet.")
    kind = torch.backends.cpu.get_cpu_capability()
    if phrasings != "evaluation":
        print(text({kind: found}, given.budget, phrasings, given.more))
        return
    kept = ROOT / "benchmarks" / "rounds.json"
    kinds = {**(json.loads(kept.read_text()) if kept.is_file() else {}), kind: found}
    told = text(kinds, given.budget, phrasings, given.more)
    print(told)
    (ROOT / "benchmarks" / "ROUNDS.md").write_text(told)
    kept.write_text(json.dumps(kinds, indent=1) + "\n")


if __name__ == "__main__":
    main()
