"""How well a gold world run's reward models know the truth that their labels only hint at.

    llm-rlhf run recipes/quickstart.yaml --only reward ...      # or the whole run; reward.ensemble=3 for doubt
    python benchmarks/gold_reward.py RUN [RUN ...]

A run's labels are flipped in part (world.label_noise). The world makes the same pairs again without flips, so that the
accuracy on held-out pairs can be told against the clean labels; so can the calibration's, and whether an ensemble's
doubt tells its errors.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from llm_rlhf import RewardModel
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import stage_options
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import splits
from llm_rlhf.statistics.calibration import calibrate, ensemble_agreement
from llm_rlhf.statistics.intervals import accuracy
from llm_rlhf.world.gold import GoldWorld


def main(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml", [f"output_dir={folder}"])
    assert recipe.world is not None, f"{folder} is not a gold world's run"
    clean = GoldWorld(dataclasses.replace(recipe.world, label_noise=0.0), recipe.seed).preferences()
    better = {(repr(p.prompt), frozenset((p.chosen, p.rejected))): p.chosen for p in clean}
    held_out = list(splits(recipe, RunFolder(folder)).evaluation_pairs)
    true = [better[repr(p.prompt), frozenset((p.chosen, p.rejected))] == p.chosen for p in held_out]
    prompts = [repr(p.prompt) for p in held_out]
    print(f"{folder}: {len(held_out)} held-out pairs, labels right in {np.mean(true):.3f} of them")
    names = stage_options(recipe, "reward").adapters
    for subject, adapters in (("reward", names), ("heldout", ["heldout"])):
        model = RewardModel.from_pretrained([folder / "reward" / name for name in adapters])
        chosen, rejected = (
            model.scores_each([(p.prompt, getattr(p, side)) for p in held_out]) for side in ("chosen", "rejected")
        )
        margins = (chosen - rejected).astype(float)
        by_truth = np.where(np.array(true)[:, None], margins, -margins)
        for labels, rows in (("clean labels", by_truth), ("labels as they are", margins)):
            mean = rows.mean(1)
            right = accuracy(mean, np.zeros_like(mean), prompts)
            known = calibrate(mean, prompts)
            fitted = "no temperature fits"
            if known["temperature"] is not None:
                fitted = f"after temperature {known['temperature']:.2f} {known['ece_after']:.3f}"
            print(
                f"  {subject}, {labels}: accuracy {right.estimate:.3f} [{right.low:.3f}, {right.high:.3f}]; "
                f"calibration error {known['ece_before']:.3f}, {fitted}"
            )
            if len(adapters) > 1:
                found = ensemble_agreement(rows, prompts)
                print(f"    doubt tells its errors: {found['auroc_doubt']}; the margin alone: {found['auroc_margin']}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(Path(name))
