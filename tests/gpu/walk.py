"""Recipes one after another, in the processes of one launch: `accelerate launch ... walk.py RECIPE ...`.

Each run's folder is `run` beside its recipe.
"""

import sys
from pathlib import Path

from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe

if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        run_recipe(load_recipe(path, [f"output_dir={path.parent / 'run'}"]))
