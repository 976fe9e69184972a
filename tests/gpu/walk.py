"""Recipes one after another, in the processes of one launch: `accelerate launch ... walk.py RECIPE ...`.

Each run's folder is `run` beside its recipe. A process must have had memory of its own device alone.
"""

import sys
from pathlib import Path

import torch

from llm_rlhf.launch import processes
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe

if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        run_recipe(load_recipe(path, [f"output_dir={path.parent / 'run'}"]))
    own = processes().device.index
    taken = {i: torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())}
    assert taken.pop(own) > 0
    assert not any(taken.values()), f"the process of cuda:{own} had memory of others: {taken}"
