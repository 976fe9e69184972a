"""The gold world's data as the files that a user would bring, so that everything reads them by the same paths."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm_rlhf.data.rows import Conversation, Prompt
from llm_rlhf.world.gold import GoldWorld


def write_files(world: GoldWorld, folder: Path) -> None:
    """Write demonstrations.jsonl, preferences.jsonl, prompts.jsonl and evaluation_prompts.jsonl into the folder."""
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
