"""Options for two objectives, compared on five seeds of the gold world: what does each do to either side?

    python benchmarks/objectives.py [--seeds 0-4] [--jobs 2]

Every setting is the quickstart's recipe with the keys below. Stages before the first that a setting changes are taken
from the default's run of that seed, so that the difference is the setting's alone. Differences are paired by seed.

Writes: benchmarks/OBJECTIVES.md and objectives.json
"""

import argparse
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from quickstart import HERE, RECIPE, SHOWN, run_quickstart, seeds_of
from scipy import stats

from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import REWARD_CHECKS

SETTINGS: dict[str, list[str]] = {  # name: what it changes
    "default": [],
    "scores whitened by objective": ["ppo.score_normalization=whiten", "ppo.score_normalization_by=objective"],
    "separate reward models": ["reward.objectives=separate", "ppo.reward_weights=[0.5, 0.5]"],
    "label smoothing 0.1": ["reward.label_smoothing=0.1"],
    "KL steered to 1 nat": ["ppo.adaptive_kl_target=1.0", "ppo.adaptive_kl_horizon=1000"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default=list(range(5)))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each uses one core")
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives-benchmark"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for changes in SETTINGS.values():
        load_recipe(RECIPE, changes)  # mistakes are told now; and two threads cannot import TRL at once
    rows: dict[str, list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for name in SETTINGS:  # the default first: the others start from its folders
            rows[name] = list(pool.map(lambda seed, name=name: _run(name, seed, options.folder), options.seeds))
    page = _page(rows)
    print(page)
    (HERE / "objectives.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (HERE / "OBJECTIVES.md").write_text(page, encoding="utf-8")


def _run(name: str, seed: int, folder: Path) -> dict[str, Any]:
    run, overrides = folder / f"{name.replace(' ', '-')}-{seed}", SETTINGS[name]
    if overrides and not run.exists():
        stages = ["world", "sft", "data"] + ([] if any(key.startswith("reward.") for key in overrides) else ["reward"])
        for stage in stages:
            shutil.copytree(folder / f"default-{seed}" / stage, run / stage)
    row = run_quickstart(run, seed, ["world.phrasings=development", *overrides])
    checks = json.loads((run / "reward" / "warnings.json").read_text(encoding="utf-8"))["checks"]
    row["warned_of"] = [f"{c['name']} ({c['split']})" for c in checks if c["level"] == "warning"]
    row["noted"] = [
        f"{c['name']} ({c['split']})" for c in checks if c["level"] == "note" and c["name"] in REWARD_CHECKS
    ]
    sides = json.loads((run / "ppo" / "preview.json").read_text(encoding="utf-8"))["sides"]
    row["preview"] = {key: sides["harmless"]["refusal_rate"][key] for key in ("average", "best")}
    row["guard"] = [news["step"] for news in json.loads((run / "ppo" / "watch.json").read_text("utf-8"))["news"]]
    return row


def _page(rows: dict[str, list[dict[str, Any]]]) -> str:
    seeds = len(rows["default"])
    lines = [f"| setting | {' | '.join(SHOWN)} |", "|---|" + "---|" * len(SHOWN)]
    for name, found in rows.items():
        lines.append(f"| {name} | {' | '.join(_mean(found, called) for called in SHOWN)} |")
    differences = [f"| setting less default | {' | '.join(SHOWN)} |", lines[1]]
    for name in list(rows)[1:]:
        cells = [_difference(rows[name], rows["default"], called) for called in SHOWN]
        differences.append(f"| {name} | {' | '.join(cells)} |")
    settings = "\n".join(f"- {name}: {' '.join(f'`{key}`' for key in keys)}" for name, keys in SETTINGS.items() if keys)
    machine = ", ".join(sorted({f"{row['cpu']}, {row['kernels']}" for found in rows.values() for row in found}))
    return f"""# Options for two objectives, on {seeds} seeds of the gold world

Made by `python benchmarks/objectives.py` on {machine}. The quickstart's recipe with

{settings}

What PPO gained over SFT by the true score, asked in the development phrasings; mean over {seeds} seeds (least to most);
refusals in percentage points.

{chr(10).join(lines)}

The same less the default's of the same seed: mean with its 95 % interval (Student's t over {seeds} seeds).

{chr(10).join(differences)}

## What was said before and while

What the reward stage warned of or noted before PPO began, in how many of the runs; refusals of harmful prompts in the
preview, of the average reply and of the best of 8 by the training reward; and in how many runs PPO's guard spoke.

| setting | warnings | notes | preview | guard |
|---|---|---|---|---|
{chr(10).join(_said(name, found) for name, found in rows.items())}
"""


def _said(name: str, found: list[dict[str, Any]]) -> str:
    def counted(key: str) -> str:
        counts = Counter(said for row in found for said in set(row[key]))
        return ", ".join(f"{said} {count}" for said, count in counts.most_common()) or "none"

    average, best = (100 * np.mean([row["preview"][key] for row in found]) for key in ("average", "best"))
    spoke = sum(bool(row["guard"]) for row in found)
    return f"| {name} | {counted('warned_of')} | {counted('noted')} | {average:.0f} % -> {best:.0f} % | {spoke} |"


def _values(found: list[dict[str, Any]], called: str) -> np.ndarray:
    return np.array([row[called]["estimate"] for row in found]) * (100 if "refusals" in called else 1)


def _mean(found: list[dict[str, Any]], called: str) -> str:
    values, digits = _values(found, called), 0 if "refusals" in called else 2
    return f"{values.mean():+.{digits}f} ({values.min():+.{digits}f} to {values.max():+.{digits}f})"


def _difference(found: list[dict[str, Any]], default: list[dict[str, Any]], called: str) -> str:
    values, digits = _values(found, called) - _values(default, called), 0 if "refusals" in called else 2
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():+.{digits}f} [{values.mean() - half:+.{digits}f}, {values.mean() + half:+.{digits}f}]"


if __name__ == "__main__":
    main()
