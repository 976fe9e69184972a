"""A reward learned from demonstrations against SFT alone, on the gold world, both from the same demonstrations.

Round by round, every demonstration is preferred to what the newest policy says to its prompt (the SFT model's first);
reward models and policy are trained on the pairs of all rounds so far, the policy from the SFT model.

    python benchmarks/imitation.py --folder runs/imitation              # 5 seeds of 2 rounds; goes on where it stopped
    python benchmarks/imitation.py --folder runs/imitation --report     # what is there, as benchmarks/IMITATION.md
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from rounds import entry, interval

from llm_rlhf.rounds.imitation import write_imitation_pairs

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


def run(folder: Path, seed: int, rounds: int, phrasings: str, more: list[str]) -> None:
    """SFT, and every round that is not there yet."""
    sft = folder / f"sft-{seed}"
    _llm_rlhf(
        QUICKSTART, f"seed={seed}", f"output_dir={sft}", "reward=null", "ppo=null", "evaluate=null",
        f"world.phrasings={phrasings}", "world.good_share=0.8", folder=sft, done="sft/manifest.json",
    )  # fmt: skip
    newest, pairs = sft, []
    for number in range(1, rounds + 1):
        pairs.append(folder / f"pairs-{seed}-{number}.jsonl")
        if not pairs[-1].is_file():
            write_imitation_pairs(newest, pairs[-1], seed, response_length=32)
        newest = folder / f"round-{number}-{seed}"
        recipe = folder / f"round-{number}-{seed}.yaml"
        recipe.write_text(yaml.safe_dump(_recipe(sft, pairs, newest, seed)))
        _llm_rlhf(recipe, *more, folder=newest, done="report.json")


def _recipe(sft: Path, pairs: list[Path], output: Path, seed: int) -> dict[str, Any]:
    of = yaml.safe_load(QUICKSTART.read_text())
    world = sft / "world"
    return {
        "name": output.name,
        "output_dir": str(output),
        "seed": seed,
        "model": of["model"] | {"base": str(sft / "sft" / "model")},
        "data": {
            "preferences": [{"source": str(file)} for file in pairs],
            "demonstrations": [{"source": str(world / "demonstrations.jsonl")}],
            "prompts": [{"source": str(world / "prompts.jsonl")}],
            "evaluation_prompts": [{"source": str(world / "evaluation_prompts.jsonl")}],
            "heldout_share": 1 / 3,
            "near_duplicates": None,
        },
        "reward": of["reward"] | {"unit_deviation": True},
        "ppo": of["ppo"],
        "evaluate": {"snapshot_prompts": 0, "best_of_n": 0},
    }


def _llm_rlhf(recipe: Path, *overrides: str, folder: Path, done: str) -> None:
    if (folder / done).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    print("llm-rlhf run", recipe, *overrides, flush=True)
    with (folder / "log").open("a") as log:
        command = [sys.executable, "-m", "llm_rlhf", "run", str(recipe), *overrides]
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def gather(folder: Path, seeds: int, rounds: int) -> dict[str, Any]:
    """Of each seed that is whole: the true score of SFT alone and of each round, and each round's gain over SFT."""
    found: dict[str, Any] = {"seeds": [], "scores": [], "gains": []}
    for seed in range(seeds):
        files = [folder / f"round-{number}-{seed}" / "report.json" for number in range(1, rounds + 1)]
        if not all(file.is_file() for file in files):
            continue
        reports = [json.loads(file.read_text())["estimates"] for file in files]
        scores = [entry([e for e in reports[0] if e["subject"] == "base"], "gold_score")["estimate"]]
        scores += [entry([e for e in report if e["subject"] == "ppo"], "gold_score")["estimate"] for report in reports]
        found["seeds"].append(seed)
        found["scores"].append(scores)
        found["gains"].append([entry(report, "gold_gain") for report in reports])
    return found


def text(found: dict[str, Any], rounds: int, phrasings: str) -> str:
    """benchmarks/IMITATION.md."""

    def of(values: list[float]) -> str:
        return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval(values))

    lines = [
        "# A reward from demonstrations, against SFT alone",
        "",
        f"{len(found['seeds'])} seeds, {phrasings} phrasings; means over seeds with Student's 95 % interval.",
        "",
        "| | true score | over SFT alone | seeds in which that gain's own interval is above 0 |",
        "| --- | --- | --- | --- |",
        f"| SFT alone | {of([one[0] for one in found['scores']])} | | |",
    ]
    for number in range(1, rounds + 1):
        gains = [one[number - 1] for one in found["gains"]]
        lines.append(
            f"| round {number} | {of([one[number] for one in found['scores']])} | {of([e['estimate'] for e in gains])} "
            f"| {sum(e['low'] > 0 for e in gains)} of {len(gains)} |"
        )
    return "\n".join([*lines, "", "Made by `python benchmarks/imitation.py --folder runs/imitation`."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go, or are")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--development", action="store_true", help="ask in the phrasings by which settings are chosen")
    parser.add_argument("--report", action="store_true", help="run nothing; write what is there")
    parser.add_argument("more", nargs="*", help="section.key=value, for every run with a reward model")
    given = parser.parse_args()
    phrasings = "development" if given.development else "evaluation"
    if not given.report:
        for seed in range(given.seeds):
            run(given.folder, seed, given.rounds, phrasings, given.more)
    found = gather(given.folder, given.seeds, given.rounds)
    if not found["seeds"]:
        raise SystemExit(f"No seed is whole in {given.folder} yet.")
    told = text(found, given.rounds, phrasings)
    print(told)
    if phrasings == "evaluation":
        (ROOT / "benchmarks" / "IMITATION.md").write_text(told)


if __name__ == "__main__":
    main()
