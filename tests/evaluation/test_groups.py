"""Which runs are pooled, and what is said of how the others differ."""

import copy
from typing import Any

from llm_rlhf.evaluation.report.groups import budget, differing, flat, groups_of, same_seeds

RECIPE: dict[str, Any] = {
    "name": "one", "output_dir": None, "seed": 0, "model": {"lora": {"r": 4}, "chat_template_date": "2026-01-01"},
    "world": {"entities": 3}, "ppo": {"kl_coef": 0.1, "total_episodes": 1600}, "evaluate": None,
}  # fmt: skip


def report_of(seconds: float = 10.0, lengths: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    recipe = {key: value for key, value in (copy.deepcopy(RECIPE) | changes).items() if value != "gone"}
    return {"run": {"name": recipe["name"], "seconds": {"ppo": seconds, "dpo": seconds}},
            "provenance": {"recipe": recipe}, "data": lengths or {}}  # fmt: skip


def test_runs_that_differ_by_seed_name_and_day_are_one_group() -> None:
    day = {"lora": {"r": 4}, "chat_template_date": "2026-02-02"}
    found = groups_of([report_of(10), report_of(20, seed=1, name="two", output_dir="runs/two", model=day)])
    assert found == [
        {
            "name": "PPO",
            "method": "ppo",
            "runs": [0, 1],
            "seconds": 15.0,
            "budget": "1,600 replies sampled",
            "differs": {},
            "by_hand": False,
        }
    ]


def test_a_key_apart_makes_two_groups_which_are_called_by_it() -> None:
    other = {"kl_coef": 0.2, "total_episodes": 1600}
    found = groups_of([report_of(), report_of(seed=1, ppo=other), report_of(seed=2)])
    assert [(group["name"], group["runs"]) for group in found] == [
        ("PPO, ppo.kl_coef=0.1", [0, 2]), ("PPO, ppo.kl_coef=0.2", [1]),
    ]  # fmt: skip
    assert differing(found) == ["ppo.kl_coef: 0.1 | 0.2"]


def test_methods_are_called_by_their_names_and_every_key_apart_is_listed() -> None:
    dpo = report_of(
        30, {"lengths in dpo": {"pairs": {"kept": 5421}}}, ppo="gone", dpo={"beta": 0.1, "num_train_epochs": 1}
    )
    found = groups_of([report_of(), dpo])
    assert [group["name"] for group in found] == ["PPO", "DPO"]
    assert [group["seconds"] for group in found] == [10.0, 30.0]
    assert [group["budget"] for group in found] == ["1,600 replies sampled", "5,421 pairs, once each"]
    assert differing(found) == ["ppo: kl_coef=0.1, total_episodes=1600", "dpo: beta=0.1, num_train_epochs=1"]
    other = report_of(ppo={"kl_coef": 0.2, "total_episodes": 1600}, world={"entities": 4})
    assert differing(groups_of([report_of(), other, dpo])) == [
        "world.entities: 3 | 4 | 3", "ppo.kl_coef: 0.1 | 0.2", "ppo: total_episodes=1600",
        "dpo: beta=0.1, num_train_epochs=1",
    ]  # fmt: skip


def test_where_many_keys_differ_groups_are_called_by_their_runs() -> None:
    """Four keys: the first three would say less than the names that their author gave them."""
    ppo = {"kl_coef": 0.2, "total_episodes": 3200}
    other = report_of(name="two", ppo=ppo, world={"entities": 4}, model={"lora": {"r": 8}})
    assert [group["name"] for group in groups_of([report_of(), other])] == ["PPO, one", "PPO, two"]
    other["run"]["name"] = "one"
    assert groups_of([report_of(), other])[1]["name"] == "PPO, model.lora.r=8, world.entities=4, ppo.kl_coef=0.2"


def test_of_sources_what_is_not_the_default_is_told() -> None:
    sources = [{"source": "pairs.jsonl", "from": None, "format": "auto", "weight": 1.0, "limit": 20}]
    found = groups_of([report_of(data={"preferences": sources}), report_of(data={"preferences": []})])
    assert differing(found) == ["data.preferences: source=pairs.jsonl limit=20 | none"]


def test_reports_that_know_no_recipe_are_pooled_only_where_the_policy_is_one() -> None:
    def asked(name: str, weights: str) -> dict[str, Any]:
        recipe = {"policy": {"model": name, "weights": {"a": weights}}, "reference": {"model": "start"}}
        return {"run": {"name": name, "seconds": {"evaluate": 1.0}}, "provenance": {"recipe": recipe}, "data": {}}

    found = groups_of([asked("a", "1"), asked("b", "2"), asked("a", "1")])
    assert [(group["name"], group["runs"], group["seconds"]) for group in found] == [
        ("a", [0, 2], None),
        ("b", [1], None),
    ]
    assert differing(found) == []


def test_options_of_an_evaluation_are_no_keys_of_a_recipe() -> None:
    """`--best-of-n` is called as a method's section is; and a recipe is not told apart by options key by key."""

    def asked(limit: int) -> dict[str, Any]:
        recipe = {"policy": {"model": "a", "method": "ppo"}, "reference": {}, "limit": limit, "best_of_n": 0, "own": []}
        return {"run": {"name": "hh: ppo against sft", "seconds": {"evaluate": 1.0}},
                "provenance": {"recipe": recipe}, "data": {}}  # fmt: skip

    found = groups_of([report_of(), asked(16)])
    assert [(group["name"], group["method"], group["by_hand"]) for group in found] == [
        ("PPO", "ppo", False), ("hh: ppo against sft", None, True),
    ]  # fmt: skip
    assert differing(found) == ["evaluated by hand, so that no recipe is known: hh: ppo against sft"]
    other = report_of(ppo={"kl_coef": 0.2, "total_episodes": 1600})
    found = groups_of([report_of(), other, asked(16), asked(32)])
    assert found[3]["name"] == "hh: ppo against sft, limit=32"
    assert differing(found)[:2] == ["ppo.kl_coef: 0.1 | 0.2", "limit: 16 | 32"]


def test_budgets_by_hand() -> None:
    lengths = {"lengths in best_of_n": {"prompts": {"kept": 150}}, "lengths in kto": {"pairs": {"kept": 1000}}}
    report = {"data": lengths}  # of the 150, a tenth is kept back
    assert (
        budget({"best_of_n.n": 4, "best_of_n.prompts": 200}, "best_of_n", report)
        == "540 replies sampled, 4 to a prompt"
    )
    assert budget({"kto.max_steps": 50}, "kto", report) == "1,000 pairs, 50 steps"
    lengths["lengths in kto"] |= {"good ratings": {"kept": 20}, "bad ratings": {"kept": 5}}
    assert budget({"kto.max_steps": 50}, "kto", report) == "1,000 pairs and 25 ratings, 50 steps"
    assert budget({"grpo.max_steps": 50}, "grpo", report) == "not recorded"
    assert flat({"a": {"b": {"c": 1}}, "seed": 3, "ppo": {}, "d": None}) == {"a.b.c": 1, "ppo": {}}


def test_runs_are_paired_by_a_seed_that_each_recipe_has_once() -> None:
    reports = [report_of(seed=seed) for seed in (0, 1, 2, 2, 5, 1, 0, 2)]
    assert same_seeds([0, 1, 2, 4], [5, 6, 7], reports) == [(0, 6), (1, 5), (2, 7)]
    assert same_seeds([0, 1, 2, 3], [5, 6, 7], reports) == [(0, 6), (1, 5)]  # of two runs of seed 2 neither
    assert same_seeds([0], [1], [report_of(seed="gone"), report_of(seed="gone")]) == []
