"""Public data sets as their authors wrote them, loaded by a bare name: what each must give, to the row.

The numbers were counted apart from this package, with a few lines of plain Python on the files.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.recipe.sections import Source

FOLDER = Path(os.environ.get("LLM_RLHF_DATA_FILES", Path(__file__).parents[2] / "../shared/data"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs a folder of public data sets (LLM_RLHF_DATA_FILES)")


def counts(kind: str, name: str, **keys: Any) -> dict[str, Any]:
    source = [Source(source=str(FOLDER / name), **keys)]
    if kind == "preferences":
        return load_preferences(source).counts()
    return (load_demonstrations if kind == "demonstrations" else load_prompts)(source, Rows()).counts()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "read", "kept"),
    [
        ("preferences", "oasst_en_100/en_100_tree.jsonl.gz", 100, 212),
        ("preferences", "oasst_en_100/en_100_message.jsonl.gz", 100, 212),
        ("demonstrations", "oasst_en_100/en_100_tree.jsonl.gz", 100, 145),
        ("prompts", "oasst_en_100/en_100_tree.jsonl.gz", 100, 480),
        ("prompts", "oasst_en_100/en_100_text.jsonl", 100, 100),
        ("preferences", "llmbar/LLMBar_*.json", 419, 419),
        ("preferences", "llmbar/Processed_*.json", 466, 464),
        ("preferences", "tulu2_bon16_scored/bon_scored.jsonl.gz", 805, 798),
        ("demonstrations", "alpaca_eval/model_outputs_*.jsonl.gz", 4828, 4826),
        ("prompts", "alpaca_eval/prompts.jsonl", 805, 805),
        ("demonstrations", "alpaca/alpaca_5000.json.gz", 5000, 4998),
        ("demonstrations", "alpaca/seed_tasks.jsonl", 175, 175),
        ("demonstrations", "self_instruct_user_oriented/user_oriented_instructions.jsonl", 252, 252),
        ("prompts", "redteam_prompts_oa/prompt_gen.csv.gz", 10000, 9775),
        ("prompts", "mt_bench_vicuna_questions/mt_bench_question.jsonl", 80, 80),
        ("prompts", "mt_bench_vicuna_questions/vicuna_question.jsonl", 80, 80),
        ("prompts", "xstest/xstest_prompts.csv", 450, 450),
    ],
)
def test_public_files_load_as_they_are(kind: str, name: str, read: int, kept: int) -> None:
    found = counts(kind, name)
    assert (found["read"], found["kept"]) == (read, kept)


@pytest.mark.slow
def test_alpaca_eval_without_its_unusable_labels_and_balanced() -> None:
    name = str(FOLDER / "alpaca_eval/gpt4_pairwise_vs_davinci003.jsonl.gz")
    loaded = load_preferences([Source(source=name, balance_positions=True)])
    found = loaded.counts()
    assert found["read"] == 41860
    assert found["set_aside"]["unusable label"] == 184  # labelled 0.0
    assert found["set_aside"]["missing field"] == 61  # labelled null
    positions = loaded.rows.column("position")
    assert np.sum(positions == 1) == np.sum(positions == 2) == 8448
