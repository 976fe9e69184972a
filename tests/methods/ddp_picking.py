"""What a function says of seven replies, asked by all processes there are; test_method_processes.py calls it in two."""

import json
from pathlib import Path
from typing import Any

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.launch import processes
from llm_rlhf.methods.best_of_n import Sources
from llm_rlhf.models.inference import Reply
from llm_rlhf.recipe.sections import BestOfNOptions

ASKED: list[list[int]] = []


def first_token(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Keeps what it was asked."""
    ASKED.append([ids[0] for ids in completion_ids])
    return [float(ids[0]) for ids in completion_ids]


def main(tokenizer: Any, scratch: Path) -> None:
    """Every process writes `NUMBER.json`: what its function was asked, and the scores of all replies."""
    prompts = [Prompt([{"role": "user", "content": str(i)}], "helpful", Origin("here", i)) for i in range(7)]
    replies = [Reply([2, 10], [20 + i, 0], "x", True) for i in range(7)]
    scores = Sources({}, [f"{__name__}:first_token"], BestOfNOptions(), 0).score(None, tokenizer, prompts, replies, 4)
    (scratch / f"{processes().process_index}.json").write_text(json.dumps([ASKED, scores.tolist()]))
