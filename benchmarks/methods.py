"""What PPO buys against simpler methods: six of them on the gold world, from the same SFT and reward model.

    python benchmarks/methods.py                           # seeds 0 to 4, all six: about an hour on one free core
    python benchmarks/methods.py --seeds 0 --methods ppo,dpo --development grpo.beta=0.05

The first method of a seed makes the stages that all share; the others start from copies of its folders. Those that
sample have a budget of 1,600 replies, those that learn from pairs read each pair of the reward model once. Settings
were chosen by the development phrasings (`--development`), on seed 0. Runs that are in `--folder` already are read, not
made again; the page and the rows are written anew as each run is done.

Writes: `--folder`/comparison/ (`llm-rlhf compare` of all runs) and, not with --development: benchmarks/METHODS.md and
methods.json
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from quickstart import HERE, RECIPE, SHOWN, run_quickstart, seeds_of
from scipy import stats

from llm_rlhf.evaluation.report.comparison import compare_runs
from llm_rlhf.evaluation.report.groups import budget, flat
from llm_rlhf.evaluation.report.side_by_side import write_comparison
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import METHODS

SHARED = ("world", "data", "sft", "reward")
PAID = METHODS.keys() - {"dpo", "kto"}  # by the reward model
Rows = dict[str, list[dict[str, Any]]]
TRIED = """## How the settings were chosen

By the development phrasings, on seed 0 alone; a method whose first settings gained about as much as PPO's kept them
(GRPO, RLOO, KTO). What was changed: DPO with beta 0.1 gained +0.24 [+0.05, +0.44], nothing of it on helpful prompts,
at a KL of 6.5 nats; with beta 0.5 it gains +0.52 at 0.9. The best of 8 of 200 prompts imitated for two epochs at a
learning rate of 1e-3 gained +0.10 [+0.00, +0.19], for six epochs at 3e-3 +0.52; the best of 16 of 100 prompts, four
epochs at 3e-3, +0.33 [+0.22, +0.45]."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default=list(range(5)), help="0-4, or 0,3")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--folder", type=Path, default=Path("runs/methods-benchmark"))
    parser.add_argument("--development", action="store_true", help="ask in the development phrasings")
    parser.add_argument("overrides", nargs="*", help="key=value, for the method whose section it names")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: Rows = {method: [] for method in options.methods}
    for method in options.methods:
        load_recipe(recipe_of(method), overrides_of(method, options))  # mistakes are told now
    for seed in options.seeds:
        first = options.folder / f"{options.methods[0]}-{seed}"
        for method in options.methods:
            run = options.folder / f"{method}-{seed}"
            if run != first and not run.exists():
                copy_shared(first, run)
            rows[method].append(row_of(run, seed, method, overrides_of(method, options)))
            write(rows, options)
    runs = [options.folder / f"{method}-{seed}" for method in options.methods for seed in options.seeds]
    if len(runs) > 1:
        print("\n".join(compare_runs(runs)["summary"]))
        print(write_comparison(compare_runs(runs), options.folder / "comparison"))


def recipe_of(method: str) -> Path:
    return RECIPE if method == "ppo" else RECIPE.parent / "methods" / f"{method}.yaml"


def overrides_of(method: str, options: argparse.Namespace) -> list[str]:
    own = [text for text in options.overrides if text.partition(".")[0] not in METHODS.keys() - {method}]
    return [*(["world.phrasings=development"] if options.development else []), *own]


def copy_shared(first: Path, run: Path) -> None:
    """The stages that do not know the method, whole or not at all."""
    begun = run.with_name(f".{run.name}")
    shutil.rmtree(begun, ignore_errors=True)
    for stage in SHARED:
        shutil.copytree(first / stage, begun / stage)
    begun.rename(run)


def row_of(run: Path, seed: int, method: str, overrides: list[str]) -> dict[str, Any]:
    """One run as a row: `run_quickstart`'s, with the seconds and the budget of the method alone."""
    row = run_quickstart(run, seed, overrides, recipe=recipe_of(method))
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    seconds = report["run"]["seconds"]
    row["method_seconds"], row["reward_seconds"] = seconds[method], seconds["reward"]
    row["budget"] = budget(flat(report["provenance"]["recipe"]), method, report)
    kl = next((e for e in report["estimates"] if e["name"] == "kl" and e["split"] == "all"), None)
    row["kl"] = None if kl is None else kl["estimate"]
    return row


def write(rows: Rows, options: argparse.Namespace) -> None:
    page = page_of({method: of for method, of in rows.items() if of}, options.development)
    (options.folder / "METHODS.md").write_text(page, encoding="utf-8")
    (options.folder / "methods.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if not (options.development or options.overrides):  # the page is of the recipes as they are
        for name in ("METHODS.md", "methods.json"):
            shutil.copy(options.folder / name, HERE / name)


def page_of(rows: Rows, development: bool) -> str:
    phrasings = "development phrasings, by which the settings were chosen" if development else "evaluation phrasings"
    machine = ", ".join(sorted({f"{row['cpu']}, {row['kernels']}" for of in rows.values() for row in of}))
    seeds = sorted({row["seed"] for of in rows.values() for row in of})
    table = [
        f"| method | {' | '.join(SHOWN)} | KL, nats a reply | seconds | with the reward stage | budget | seeds |",
        "|" + "---|" * (len(SHOWN) + 6),
    ]
    for method, found in rows.items():
        kls = [row["kl"] for row in found if row["kl"] is not None]
        cells = [mean_of([value(row, called) for row in found], digits_of(called)) for called in SHOWN]
        own, reward = (np.mean([row[key] for row in found]) for key in ("method_seconds", "reward_seconds"))
        cells += [f"{np.mean(kls):.1f}" if kls else "-", f"{own:.0f}", f"{own + reward:.0f}" if method in PAID else "-"]
        table.append(f"| {METHODS[method]} | {' | '.join(cells)} | {found[0]['budget']} | {len(found)} |")
    against = [f"| less PPO of the same seed | {' | '.join(SHOWN)} |", "|" + "---|" * (len(SHOWN) + 1)]
    for method, found in rows.items():
        ppo = {row["seed"]: row for row in rows.get("ppo", [])}
        pairs = [(row, ppo[row["seed"]]) for row in found if row["seed"] in ppo]
        if method != "ppo" and pairs:
            cells = [
                mean_of([value(one, called) - value(other, called) for one, other in pairs], digits_of(called))
                for called in SHOWN
            ]
            against.append(f"| {METHODS[method]} | {' | '.join(cells)} |")
    return f"""# PPO and simpler methods on the gold world

Made by `python benchmarks/methods.py` on {machine}, one thread a run, seeds {", ".join(map(str, seeds))}.
What each policy gained over the SFT model it started from, by the true score, asked in the {phrasings};
refusals in percentage points. A cell is the mean over seeds with its 95 % interval (Student's t over seeds): a seed
draws the data, the SFT model, the reward model and the policy anew, and within a seed all methods share all but the
last. Prompts of one run share phrasings, so that they are not counted as repetitions here. Seconds are of the method's
own stage, and with the reward stage, in which the model that pays is trained and the held-out one that judges; DPO
and KTO need neither to train.

{chr(10).join(table)}

The same less PPO's of the same seed:

{chr(10).join(against)}

{TRIED}
"""


def value(row: dict[str, Any], called: str) -> float:
    return float(row[called]["estimate"]) * (100 if "refusals" in called else 1)


def digits_of(called: str) -> int:
    return 0 if "refusals" in called else 2


def mean_of(values: list[float], digits: int) -> str:
    """The mean with its interval over seeds; of one seed, which has none, the value alone."""
    mean = f"{np.mean(values):+.{digits}f}"
    if len(values) < 2:
        return f"{mean} (one seed)"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean} [{np.mean(values) - half:+.{digits}f}, {np.mean(values) + half:+.{digits}f}]"


if __name__ == "__main__":
    main()
