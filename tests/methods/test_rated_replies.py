"""KTO on single rated replies: rows of their own beside those of pairs, and how good and bad ones are weighed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from method_helpers import ASKED, make
from ppo_helpers import LORA
from transformers import AutoModelForCausalLM
from trl import KTOConfig

from llm_rlhf.data.rows import Origin, Preference, Rating
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.methods.offline import Balance, ReplyKTOTrainer, balance, kto_rows, not_in_pairs
from llm_rlhf.models.encoding import encode_turn
from llm_rlhf.models.fitting import Fitted, fit_ratings
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.run_folder import RunFolder, read_json, write_json
from llm_rlhf.stages import offline


def pair(i: int, **more: Any) -> Preference:
    return Preference(ASKED[i], f"yes {i}", f"no {i}", "helpful", Origin("pairs", i), **more)


def rating(i: int, text: str, good: bool) -> Rating:
    return Rating(ASKED[i], text, good, "helpful", Origin("thumbs", i))


def test_a_rated_reply_is_a_row_with_its_label_beside_those_of_pairs(tokenizer) -> None:
    ratings = [rating(5, "fine", True), rating(6, "bad one", False), rating(7, "bad two", False)]
    rows = kto_rows(tokenizer, [pair(0)], ratings, batch_size=5, seed=0, estimates_kl=True)
    said = [(tokenizer.decode(row["completion_ids"], skip_special_tokens=True), row["label"]) for row in rows]
    assert sorted(said) == [("bad one", False), ("bad two", False), ("fine", True), ("no 0", False), ("yes 0", True)]
    one = next(row for row in rows if row["label"] and len(row["completion_ids"]) == len("fine") + 1)
    turn = encode_turn(tokenizer, ASKED[5], {"role": "assistant", "content": "fine"})
    assert one["prompt_ids"] + one["completion_ids"] == turn.ids
    assert [row["KL_completion_ids"] for row in rows] == [rows[i - 1]["completion_ids"] for i in range(5)]
    assert [row["length"] for row in rows] == [len(row["prompt_ids"] + row["completion_ids"]) for row in rows]
    assert all(rows[i] != row for i, row in enumerate(kto_rows(tokenizer, [], ratings, 2, 0, False)))


def test_a_rating_that_a_pair_holds_is_taken_once_and_one_that_contradicts_it_stays() -> None:
    ratings = [rating(0, "yes 0", True), rating(0, "no 0", False), rating(0, "no 0", True), rating(1, "yes 0", True)]
    assert not_in_pairs(ratings, [pair(0)]) == ratings[2:]


@pytest.mark.parametrize(
    ("good", "bad", "given", "expected"),
    [
        (30, 30, (None, None), (1.0, 1.0)),
        (10, 40, (None, None), (4.0, 1.0)),
        (40, 10, (None, None), (1.0, 4.0)),
        (40, 10, (None, 3.0), (1.0, 3.0)),  # 40 / 30 is just within
        (40, 10, (2.0, None), (2.0, 1.0)),
        (30, 30, (1.2, None), (1.2, 1.0)),
    ],
)
def test_weights_even_out_how_many_there_are(good, bad, given, expected) -> None:
    """By hand, and by the paper's condition wherever nothing is said."""
    found = balance(good, bad, *given)
    assert (found.desirable, found.undesirable) == expected
    in_range = 1 - 1e-9 <= found.desirable * good / (found.undesirable * bad) <= 4 / 3 + 1e-9
    told = "advise" in found.note
    assert in_range != told
    assert bool(found.note) == (told or (good != bad and given == (None, None)))


def test_what_is_said_of_weights_names_the_key() -> None:
    assert balance(1000, 10, None, None).note == (
        "kto learns from 1,000 good and 10 bad replies; the rarer ones weigh more (kto.undesirable_weight: 100)."
    )
    assert "kto.undesirable_weight is 1: its authors advise a kto.desirable_weight of 0.25 to 0.333, and it is 2" in (
        balance(40, 10, 2.0, None).note
    )
    assert balance(7, 7, None, None) == Balance(1.0, 1.0)


def test_a_rated_reply_is_cut_at_turns_or_counted_as_too_long(tokenizer) -> None:
    talk = [*ASKED[0], {"role": "assistant", "content": "well " * 9}, *ASKED[1]]
    row = Rating(talk, "yes", True, "helpful", Origin("thumbs", 1))
    whole = len(encode_turn(tokenizer, talk, {"role": "assistant", "content": "yes"}).ids)
    assert fit_ratings(tokenizer, [row], Fitted(whole, "ratings")) == [row]
    account = Fitted(whole - 1, "ratings")
    assert [fitted.prompt for fitted in fit_ratings(tokenizer, [row], account)] == [ASKED[1]]
    account = Fitted(4, "ratings")
    assert fit_ratings(tokenizer, [row], account) == []
    assert account.counts() == {"token_limit": 4, "kept": 0, "cut_at_turns": 0, "too_long": 1}


def test_the_loss_that_estimates_no_kl_may_group_by_length(base_folder, tokenizer, tmp_path) -> None:
    """TRL's sampler goes by the rows' `length`, as DPO's."""
    rows = kto_rows(tokenizer, [pair(i) for i in range(4)], [], 2, 0, estimates_kl=False)
    trainer = ReplyKTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base_folder), train_dataset=Dataset.from_list(rows),
        args=KTOConfig(str(tmp_path), loss_type="apo_zero_unpaired", train_sampling_strategy="group_by_length",
                       report_to="none", bf16=False, use_cpu=True, max_length=None, remove_unused_columns=False,
                       per_device_train_batch_size=4),
        processing_class=tokenizer, peft_config=LORA,
    )  # fmt: skip
    assert sum(len(batch["label"]) for batch in trainer.get_train_dataloader()) == 8


# --- the stage


class HandedOverError(Exception):
    """Stops the stage where it would begin to train."""


def staged(
    base: Path, folder: Path, thumbs: list[tuple[int, str, bool]], pairs: int, monkeypatch: Any, **section: Any
) -> dict[str, Any]:
    """What the stage gives its trainer, of a recipe with these ratings and so many pairs."""
    kept: dict[str, Any] = {}

    def keep(**kwargs: Any) -> None:
        kept.update(kwargs)
        raise HandedOverError

    rows = [{"prompt": f"question {i}", "completion": text, "label": good} for i, text, good in thumbs]
    (folder / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data: dict[str, Any] = {"ratings": [{"source": str(folder / "thumbs.jsonl")}]}
    if pairs:
        asked = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(pairs)]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
        data |= {"preferences": [{"source": str(folder / "pairs.jsonl")}], "evaluation_share": 0.0}
        data |= {"evaluation_prompts": []}
    tree = {"name": "rated", "model": {"base": str(base)}, "data": data, "kto": section}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    recipe = load_recipe(folder / "recipe.yaml", [f"output_dir={folder / 'run'}"])
    run = RunFolder(recipe.folder)
    (run / "kto").mkdir(parents=True)
    monkeypatch.setitem(offline.TRAINERS, "kto", keep)
    with pytest.raises(HandedOverError):
        offline.run(recipe, run, run / "kto")
    kept["lengths"] = json.loads((run / "kto" / "lengths.json").read_text())
    return kept


THUMBS = [(0, "yes 0", True), (50, "nice", True), (51, "rude", False), (52, "rude too", False), (53, "rude 3", False)]


def test_the_stage_takes_ratings_beside_pairs_accounts_for_both_and_weighs_them(
    base_folder, tmp_path, monkeypatch, capsys
) -> None:
    kept = staged(base_folder, tmp_path, THUMBS, 2, monkeypatch)
    labels = [row["label"] for row in kept["train_dataset"].to_list()]
    assert (labels.count(True), labels.count(False)) == (3, 5)
    assert (kept["args"].desirable_weight, kept["args"].undesirable_weight) == (5 / 3, 1.0)
    assert {name: counts["kept"] for name, counts in kept["lengths"].items()} == {
        "pairs": 2, "good ratings": 1, "bad ratings": 3,
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "1 of 5 ratings are of replies that pairs hold, and are taken once" in out
    assert "kto learns from 3 good and 5 bad replies; the rarer ones weigh more (kto.desirable_weight: 1.67)" in out


def test_the_replies_for_the_kl_are_of_the_batch_of_all_processes(base_folder, tmp_path, monkeypatch) -> None:
    """Two processes of two rows lay the same ones beside each other as one of four."""
    monkeypatch.setattr(offline, "processes", lambda: SimpleNamespace(num_processes=2))
    kept = staged(base_folder, tmp_path, THUMBS, 2, monkeypatch, per_device_train_batch_size=2)
    rows = kept["train_dataset"].to_list()
    assert len(rows) == 8
    for batch in (rows[:4], rows[4:]):
        ids = [row["completion_ids"] for row in batch]
        assert [row["KL_completion_ids"] for row in batch] == [ids[-1], *ids[:-1]]


def test_ratings_alone_are_enough_and_weights_of_the_recipe_are_kept(
    base_folder, tmp_path, monkeypatch, capsys
) -> None:
    kept = staged(base_folder, tmp_path, THUMBS, 0, monkeypatch, desirable_weight=1.5)
    assert len(kept["train_dataset"]) == 5
    assert (kept["args"].desirable_weight, kept["args"].undesirable_weight) == (1.5, 1.0)
    assert "good and" not in capsys.readouterr().out  # 2 x 1.5 against 3: as advised


@pytest.mark.parametrize("off", [True, False])
def test_dropout_of_the_base_is_off_unless_it_is_asked_for(off, base_folder, tmp_path, monkeypatch) -> None:
    """Also what attention reads in the configuration, which TRL's own `disable_dropout` leaves on."""
    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    write_json(base / "config.json", read_json(base / "config.json") | {"attention_dropout": 0.5})
    model = staged(base, tmp_path, THUMBS, 0, monkeypatch, disable_dropout=off)["model"].train()
    first, second = (model(input_ids=torch.arange(12)[None]).logits for _ in range(2))
    assert torch.equal(first, second) == off


def test_good_replies_alone_are_refused(base_folder, tmp_path, monkeypatch) -> None:
    with pytest.raises(DataError, match=r"all good ones.*add bad ones to 'data.ratings'"):
        staged(base_folder, tmp_path, THUMBS[:2], 0, monkeypatch)


def test_a_recipe_with_ratings_is_one_of_kto(tmp_path) -> None:
    def load(**sections: Any) -> Any:
        tree = {"name": "rated", "model": {"base": "here"}, **sections}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
        return load_recipe(tmp_path / "recipe.yaml")

    thumbs = {"ratings": [{"source": "thumbs.jsonl"}]}
    assert load(data=thumbs, kto={}).data.ratings[0].source == "thumbs.jsonl"
    with pytest.raises(RecipeError, match=r"'data.ratings' names single rated replies, from which 'kto' alone learns"):
        load(data=thumbs | {"preferences": [{"source": "pairs.jsonl"}]}, dpo={})
    with pytest.raises(RecipeError, match=r"'kto' learns from pairs, or name single rated replies in 'data.ratings'"):
        load(data={}, kto={})
    with pytest.raises(RecipeError, match=r"'data.ratings.0.from' is 'preferences', both replies of which"):
        load(data={"preferences": [{"source": "pairs.jsonl"}], "ratings": [{"from": "preferences"}]}, kto={})


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_what_pairs_say_and_the_method_does_not_use_is_told(stage) -> None:
    assert offline.not_used(stage, [pair(0), pair(1)]) == ""
    told = offline.not_used(stage, [pair(0, margin=2.0), pair(1, margin=0.0, confidence=0.8), pair(2)])
    assert told.startswith(
        "of 3 pairs 2 say by how much the chosen reply is better (margin), 1 how probably it is (a soft label): "
        f"{stage} has no use for that and takes all alike"
    )
    assert ("dpo.label_smoothing" in told) == (stage == "dpo")


def test_rated_replies_of_both_kinds_train(base_folder, tmp_path) -> None:
    """With the weights in the loss: good ones alone in a batch count theirs."""
    trainer = make("kto", base_folder, tmp_path, desirable_weight=2.0)
    (good,) = [row for row in trainer.train_dataset.to_list() if row["label"]][:1]
    twice = float(trainer.compute_loss(trainer.model, trainer.data_collator([good, good])).detach())
    assert twice == pytest.approx(2 * 0.5, abs=1e-6)  # 1 - sigmoid(0): the policy is the start
