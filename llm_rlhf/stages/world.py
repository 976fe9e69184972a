"""The gold world: the base model and the data of a recipe that has no others.

Everything is written as the files a user would bring, so that the later stages read them by the same paths.

Writes: base/ demonstrations.jsonl preferences.jsonl prompts.jsonl evaluation_prompts.jsonl
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_rlhf.data.rows import Conversation, Prompt
from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.world.base_model import shipped_base
from llm_rlhf.world.gold import GoldWorld


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Write the world's data and its base model, in float32. `folder` becomes `world/`."""
    if run_folder.state.is_main_process:
        write_rows(recipe, folder)
        AutoModelForCausalLM.from_pretrained(shipped_base(), dtype="float32").save_pretrained(folder / "base")
        AutoTokenizer.from_pretrained(shipped_base()).save_pretrained(folder / "base")


def write_rows(recipe: Recipe, folder: Path) -> None:
    """Write the world's data alone."""
    assert recipe.world is not None
    world = GoldWorld(recipe.world, recipe.seed)
    _write(folder / "demonstrations.jsonl", ({"messages": row.messages} for row in world.demonstrations()))
    _write(
        folder / "preferences.jsonl",
        (
            {
                "prompt": row.prompt,
                "chosen": _reply(row.chosen),
                "rejected": _reply(row.rejected),
                "objective": row.objective,
            }
            for row in world.preferences()
        ),
    )
    _write(folder / "prompts.jsonl", map(_prompt, world.prompts()))
    _write(folder / "evaluation_prompts.jsonl", map(_prompt, world.evaluation_prompts()))


def _reply(text: str) -> Conversation:
    return [{"role": "assistant", "content": text}]


def _prompt(row: Prompt) -> dict[str, Any]:
    return {"prompt": row.messages, "objective": row.objective, "facts": row.facts}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
