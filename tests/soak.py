"""Kill the chain at random moments in every stage, start it again, and compare its end with an undisturbed one's.

    python tests/soak.py [--kills 30] [--seed 0] [--processes 1 2] [--set KEY=VALUE ...]     (or: make soak)

A run of the tiny chain is begun in an empty folder. Each launch gets SIGKILL at a random moment of a random stage that
it has still to make; now and then the next launch is given `--from` a stage, which archives what it finds. When a run's
kills are used up it is left to end, and its weights, replies and estimates must be those of a run that nobody killed:
the same bits. Exit code 1 where one is not.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from chain_helpers import write_recipe
from launching import Launch, start

STAGES = ("world", "sft", "reward", "ppo", "evaluate")
OVERRIDES = (
    "ppo.total_episodes=96", "ppo.save_rollouts=1", "ppo.eval_rollouts=2", "ppo.adaptive_kl_target=0.05",
    "ppo.adaptive_kl_horizon=100", "ppo.score_normalization=whiten", "ppo.ptx_coef=0.1", "sft.max_steps=12",
    "reward.max_steps=12", "reward.length_control=residual",
)  # fmt: skip
KILLS_A_RUN = 6
FROM = 0.25  # share of launches after a kill that are given --from
PATIENCE = 600.0  # seconds until a launch is taken for hung


def launch(run: Path, processes: int, also: list[str], from_stage: str | None = None) -> Launch:
    asked: list[object] = ["run", run.parent / "tiny.yaml", f"output_dir={run}", *OVERRIDES, *also]
    if from_stage is not None:
        asked += ["--from", from_stage]
    return start(*asked, processes=processes, folder=run.parent / f"said-{run.name}")


def undisturbed(folder: Path, processes: int, also: list[str]) -> Path:
    run = folder / f"undisturbed-{processes}"
    launch(run, processes, also).finish(PATIENCE)
    return run


def seconds_of(run: Path) -> dict[str, float]:
    return {stage: json.loads((run / stage / "manifest.json").read_text())["seconds"] for stage in STAGES}


def missing(run: Path) -> list[str]:
    return [stage for stage in STAGES if not (run / stage / "manifest.json").is_file()]


def wait_for(started: Launch, path: Path) -> bool:
    """Whether the folder came to be before the launch ended."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if not started.runs:
            return False
        if time.monotonic() > deadline:
            raise SystemExit(f"{path} did not come in {PATIENCE:.0f} s: {started.errors}")
        time.sleep(0.002)
    return True


def disturb(
    run: Path, processes: int, also: list[str], kills: int, seconds: dict[str, float], draw: random.Random
) -> list[str]:
    """Kill a run so many times, and let it end; what was done, in words."""
    done: list[str] = []
    from_stage: str | None = None
    while len(done) < kills and missing(run):
        started = launch(run, processes, also, from_stage)
        again = STAGES if from_stage is None else STAGES[STAGES.index(from_stage) :]
        stage = draw.choice([name for name in again if from_stage is not None or name in missing(run)])
        delay = draw.uniform(0, 0.9) * seconds[stage]
        if from_stage is not None and not wait_for(started, run / "archive"):
            raise SystemExit(f"a launch with --from {from_stage} ended by itself: {started.errors}")
        if wait_for(started, run / f"partial-{stage}"):
            time.sleep(delay)
        if not started.runs:  # it was done before
            break
        started.kill()
        done.append(f"{stage} after {delay:.2f} s" + (f" (begun with --from {from_stage})" if from_stage else ""))
        made = [name for name in STAGES if name not in missing(run)]
        from_stage = draw.choice(made) if made and draw.random() < FROM else None
    launch(run, processes, also, from_stage).finish(PATIENCE)
    return done


def differences(one: Path, two: Path) -> list[str]:
    """Files of weights and replies that differ, and estimates."""
    found = []
    for path in sorted(one.rglob("*")):
        name = path.relative_to(one)
        if "archive" in name.parts or not path.is_file():
            continue
        if path.suffix == ".safetensors" or path.name in ("replies.jsonl", "samples.jsonl", "accuracy.json"):
            there = two / name
            if not there.is_file() or there.read_bytes() != path.read_bytes():
                found.append(str(name))
    reports: list[Any] = [json.loads((run / "report.json").read_text())["estimates"] for run in (one, two)]
    if reports[0] != reports[1]:
        found.append("the report's estimates")
    left = [str(path.relative_to(two)) for path in two.glob("partial-*")]
    left += [str(path.relative_to(two)) for stage in STAGES for path in (two / stage).rglob("checkpoint-*")]
    return found + [f"{name} was left" for name in left]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--set", dest="also", nargs="+", default=[], help="keys of the recipe, as model.compile=true")
    parser.add_argument("--folder", type=Path, help="where the runs go; default: a new one under the temporary folder")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(folder)
    draw = random.Random(asked.seed)
    failed = killed = number = 0
    expected = {processes: undisturbed(folder, processes, asked.also) for processes in asked.processes}
    while killed < asked.kills:
        processes = asked.processes[number % len(asked.processes)]
        number += 1
        run = folder / f"run-{number}"
        kills = min(KILLS_A_RUN, asked.kills - killed)
        done = disturb(run, processes, asked.also, kills, seconds_of(expected[processes]), draw)
        killed += len(done)
        wrong = differences(expected[processes], run)
        failed += bool(wrong)
        said = "differs: " + ", ".join(wrong) if wrong else "ended in the same bits"
        print(f"{run.name}, {processes} process(es), killed in {'; '.join(done)}: {said}", flush=True)
    print(f"{killed} kills in {number} runs; {failed} of them differ ({folder})")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
