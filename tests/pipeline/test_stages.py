"""Stages by themselves: what the world writes, what SFT encodes, and what the evaluation asks for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from llm_rlhf.data.rows import Demonstration, Origin
from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts
from llm_rlhf.errors import DataError
from llm_rlhf.pipeline import unread_columns
from llm_rlhf.recipe.sections import EvaluateSection, ModelSection, Recipe, Source, WorldSection
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.stages import evaluate, sft, world
from llm_rlhf.world.base_model import shipped_base
from llm_rlhf.world.gold import GoldWorld

SMALL = WorldSection(entities=3, demonstrations=8, preferences=10, prompts=6, evaluation_prompts=5)


def test_the_worlds_files_are_read_back_as_its_rows(tmp_path: Path) -> None:
    world.run(Recipe("tiny", world=SMALL, seed=3), RunFolder(tmp_path), tmp_path)
    gold = GoldWorld(SMALL, 3)

    def source(name: str) -> list[Source]:
        return [Source(source=str(tmp_path / f"{name}.jsonl"))]

    pairs = load_preferences(source("preferences")).rows
    assert [(p.prompt, p.chosen, p.rejected, p.objective) for p in pairs] == [
        (p.prompt, p.chosen, p.rejected, p.objective) for p in gold.preferences()
    ]
    talks = load_demonstrations(source("demonstrations"), []).rows
    assert [talk.messages for talk in talks] == [talk.messages for talk in gold.demonstrations()]
    for name in ("prompts", "evaluation_prompts"):
        found = load_prompts(source(name), []).rows
        assert [(p.messages, p.objective, p.facts) for p in found] == [
            (p.messages, p.objective, p.facts) for p in getattr(gold, name)()
        ]
    vocabularies = [AutoTokenizer.from_pretrained(place).get_vocab() for place in (tmp_path / "base", shipped_base())]
    assert vocabularies[0] == vocabularies[1]
    assert (tmp_path / "base" / "model.safetensors").is_file()


def test_sft_reads_what_fits_and_leaves_nothing_to_cut(base_folder, tokenizer, tmp_path, monkeypatch) -> None:
    """<|user|>, q, <|assistant|>, three bytes, <|eos|> are 7; the other row has 300 more than the model reads."""
    rows = [
        Demonstration([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}], Origin("here", i))
        for i, text in enumerate(("yes", "x" * 300), 1)
    ]
    monkeypatch.setattr(sft, "splits", lambda *_: SimpleNamespace(demonstrations=rows))
    recipe, run = Recipe("tiny", model=ModelSection(base=str(base_folder))), RunFolder(tmp_path)
    config = SimpleNamespace(max_length=None, packing=False)
    found = sft._encode(recipe, run, tmp_path, tokenizer, config, base_folder)
    assert [len(ids) for ids in found["input_ids"]] == [7]
    assert (tmp_path / "too_long.jsonl").read_text().count("\n") == 1
    config = SimpleNamespace(max_length=6, packing=True)
    with pytest.raises(DataError, match=r"No demonstration fits into 6 tokens; raise sft.max_length"):
        sft._encode(recipe, run, tmp_path, tokenizer, config, base_folder)
    config.max_length = 7
    assert len(sft._encode(recipe, run, tmp_path, tokenizer, config, base_folder)) == 1
    assert config.max_length == 7  # where rows are packed, as long as they may be


def test_an_evaluation_is_asked_as_the_section_says(tmp_path: Path) -> None:
    section = EvaluateSection(prompts=7, refusal_prompts=3, snapshot_prompts=30, suites=["refusals"], batch_size=5,
                              reference="http://localhost:1/v1#served", reference_key_variable="R",
                              judge="people:v.jsonl", judge_key_variable="J")  # fmt: skip
    recipe = Recipe("tiny", model=ModelSection(base="org/base"), sft={}, reward={}, ppo={}, evaluate=section, seed=4)
    run = RunFolder(tmp_path)
    asked = evaluate.request(recipe, run, tmp_path / "out")
    assert (asked.policy.name, asked.policy.adapter) == ("ppo", tmp_path / "ppo" / "policy")
    assert (asked.start.name, asked.start.served) == ("served", "served")
    assert (asked.key_variable, asked.judge_key_variable) == ("R", "J")
    assert (asked.limit, asked.refusal_limit, asked.batch_size, asked.seed) == (7, 3, 5, 4)
    assert (asked.refusals, asked.snapshot_prompts) == (True, 0)  # no curve of over-optimisation was asked for
    recipe.evaluate = EvaluateSection(suites=["overoptimization"], snapshot_prompts=30)
    asked = evaluate.request(recipe, run, tmp_path / "out")
    assert (asked.start.name, asked.start.adapter, asked.refusals, asked.snapshot_prompts) == ("sft", None, False, 30)
    recipe.sft = None
    assert evaluate.request(recipe, run, tmp_path / "out").start.name == "base"


def test_columns_that_nothing_reads_are_told_once_a_file() -> None:
    columns = {"source": 1200, "id": 3}
    counts = {
        "preferences": {"read": 1200, "unread": {"data/pairs.jsonl": columns}},
        "prompts": {"read": 1200, "unread": {"data/pairs.jsonl": columns, "x.csv": {f"c{i}": 1 for i in range(14)}}},
        "splits": {"prompts": 9},
    }
    first, second = unread_columns(counts)
    assert first == "nothing reads, in pairs.jsonl: source (1,200 rows), id (3 rows)"
    assert second.startswith("nothing reads, in x.csv: c0 (1 rows), ")
    assert second.endswith("c11 (1 rows) and 2 more")
