"""A model repository with Python of its own: importing it leaves a mark, so that a test sees whether it ran."""

import json
import shutil
from pathlib import Path

CONFIGURATION = """
import os
from pathlib import Path
from transformers import LlamaConfig

Path(os.environ["CANARY"]).touch()


class {kind}Config(LlamaConfig):
    model_type = "{kind_lower}"
"""
MODELING = """
from torch import nn
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel

from .configuration_{kind_lower} import {kind}Config


class {kind}ForCausalLM(LlamaForCausalLM):
    config_class = {kind}Config


class {kind}ForSequenceClassification(LlamaForSequenceClassification):
    config_class = {kind}Config

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""
TOKENIZATION = """
import os
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path(os.environ["CANARY"]).touch()


class {kind}Tokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(plain: Path, to: Path, kind: str) -> Path:
    """A copy of a Llama and its tokenizer whose configuration, model and tokenizer are classes of its own code."""
    shutil.copytree(plain, to)
    names = {"kind": kind, "kind_lower": kind.lower()}
    for name, text in {"configuration": CONFIGURATION, "modeling": MODELING, "tokenization": TOKENIZATION}.items():
        (to / f"{name}_{kind.lower()}.py").write_text(text.format(**names))
    config = json.loads((to / "config.json").read_text())
    config["model_type"] = kind.lower()
    config["auto_map"] = {"AutoConfig": f"configuration_{kind.lower()}.{kind}Config"} | {
        f"AutoModelFor{task}": f"modeling_{kind.lower()}.{kind}For{task}"
        for task in ("CausalLM", "SequenceClassification")
    }
    config["architectures"] = [name.replace("Llama", kind) for name in config["architectures"]]
    (to / "config.json").write_text(json.dumps(config))
    config = json.loads((to / "tokenizer_config.json").read_text())
    config |= {
        "tokenizer_class": f"{kind}Tokenizer",
        "auto_map": {"AutoTokenizer": [None, f"tokenization_{kind.lower()}.{kind}Tokenizer"]},
    }
    (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to
