"""Makes the base model of the gold world that lies beside this file.

    python data/base/make.py [FOLDER]       # about ten minutes on one CPU core

It reads of all animals of the valley, in training phrasings alone. The weights are kept in float16, half the size.
Another CPU makes other bits, as good; runs use the ones that ship.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_rlhf.recipe.sections import WorldSection
from llm_rlhf.world.base_model import make_tiny_base
from llm_rlhf.world.gold import GoldWorld
from llm_rlhf.world.phrases import ANIMALS

CONVERSATIONS, EPOCHS, SEED = 50_000, 2, 0

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)  # so that the cores do not change the result
    with tempfile.TemporaryDirectory() as made:
        world = GoldWorld(WorldSection(entities=len(ANIMALS)), SEED)
        make_tiny_base(world.corpus(CONVERSATIONS), made, SEED, epochs=EPOCHS)
        AutoTokenizer.from_pretrained(made).save_pretrained(folder)
        AutoModelForCausalLM.from_pretrained(made, dtype=torch.float16).save_pretrained(folder)
