"""Functions of a user's that score responses: what they return, raise or change, nothing is trained on unseen."""

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import PROMPTS, make
from ppo_helpers import make_trainer
from test_requests import ask, pairs, recipe_on, refused
from torch import nn

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.errors import NonFiniteError, RecipeError, RunError
from llm_rlhf.evaluation.suites.own import score_replies
from llm_rlhf.methods.best_of_n import Sources
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.guards import check_some_scored, neutral_where_silent
from llm_rlhf.ppo.reward_functions import checked
from llm_rlhf.ppo.scores import ScoreSources
from llm_rlhf.recipe.sections import BestOfNOptions, OwnSuite, Source
from llm_rlhf.user_code import load_function

GIVEN: dict[str, Any] = {"prompts": ["a", "b"], "completions": ["long text", "short"], "completion_ids": [[1, 2], [3]]}
NAN, INF = float("nan"), float("inf")


def returning(value: Any) -> Any:
    def scores(completions: list[Any], **kwargs: Any) -> Any:
        return value() if callable(value) else value

    return scores


def raising() -> Any:
    raise ZeroDivisionError("by nothing")


def halfway() -> Any:
    yield 1.0
    sys.exit(0)


WRONG = {
    "too few": ([1.0], "returned 1 numbers for 2 completions"),
    "too many": ([1.0] * 3, "returned 3 numbers for 2 completions"),
    "none at all": ([], "returned 0 numbers for 2 completions"),
    "nothing": (None, "returned None; it must return a list"),
    "a number": (0.5, "returned 0.5; it must return a list"),
    "text": ("01", "returned '01'; it must return a list"),
    "a mapping": ({0: 1.0, 1: 2.0}, "it must return a list"),
    "a tensor of one number": (torch.tensor(1.0), "it must return a list"),
    "a word": ([1.0, "good"], "returned 'good' for row 1 of 2, completion 'short'"),
    "a numeral": (["1", 2.0], "returned '1' for row 0 of 2, completion 'long text'"),
    "a list in it": ([[1.0], 2.0], "returned [1.0] for row 0"),
    "a table": (torch.ones(2, 2), "for row 0"),
    "no number": ([1.0, NAN], "returned nan for row 1 of 2, completion 'short'"),
    "an infinity": ([-INF, 1.0], "returned -inf for row 0"),
    "more than float32 has": ([1e39, 1.0], "returned 1e+39 for row 0"),
    "more than a float has": ([10**400, 1.0], "for row 0"),
    "a complex number": ([1j, 1.0], "returned 1j for row 0"),
    "an error": (raising, "failed: ZeroDivisionError: by nothing (" + __file__),
    "an error halfway": (halfway, "failed: SystemExit: 0 (" + __file__),
    "the end": (lambda: sys.exit(0), "failed: SystemExit: 0 (" + __file__),
}


@pytest.mark.parametrize(("value", "words"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("later", [False, True])
def test_fault_25_what_is_no_score_is_told_with_function_row_and_value(value, words, later) -> None:
    function = returning(value)

    async def in_time(completions: list[Any], **kwargs: Any) -> Any:
        return function(completions)

    def ask_it() -> None:
        found = checked(in_time if later else function)(**GIVEN)
        asyncio.run(found)

    with pytest.raises(RunError) as error:
        ask_it()
    assert words in str(error.value)
    assert f"The reward function {__name__}:" in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "value",
    [[1, 2.5], (1, 2.5), (x for x in (1, 2.5)), torch.tensor([1, 2.5]), torch.tensor([1, 2.5]).numpy(), [True, 2.5],
     [torch.tensor(1.0, requires_grad=True), torch.tensor([2.5])]],
)  # fmt: skip
def test_what_is_a_score_is_one(value) -> None:
    assert checked(returning(value))(**GIVEN) == [1.0, 2.5]


def test_none_stays_none() -> None:
    assert checked(returning([None, 2]))(**GIVEN) == [None, 2.0]


def test_what_a_function_does_to_its_arguments_reaches_nobody() -> None:
    def greedy(prompts: list[str], completions: list[Any], completion_ids: list[Any], **kwargs: Any) -> list[float]:
        completions[0][0]["content"] = ""
        completion_ids[0].clear()
        prompts.pop()
        return [1.0] * len(completions)

    given = {"prompts": ["a"], "completions": [[{"role": "assistant", "content": "b"}]], "completion_ids": [[1]]}
    assert checked(greedy)(**given) == [1.0]
    assert given == {
        "prompts": ["a"],
        "completions": [[{"role": "assistant", "content": "b"}]],
        "completion_ids": [[1]],
    }


def test_objects_and_partial_functions_are_checked_too() -> None:
    class Judge:
        def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
            return [NAN] * len(completions)

    def by(completions: list[Any], value: float, **kwargs: Any) -> list[float]:
        return [value] * len(completions)

    assert checked(Judge()).__name__ == "Judge"
    with pytest.raises(RunError, match=r"Judge returned nan for row 0"):
        checked(Judge())(**GIVEN)
    assert checked(partial(by, value=2))(**GIVEN) == [2.0, 2.0]


def some(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """A score for every other one."""
    return [None if row % 2 else float(row) for row in range(len(completions))]


def none(completions: list[Any], **kwargs: Any) -> list[None]:
    return [None] * len(completions)


def test_fault_26_none_adds_nothing_and_a_row_of_nothing_but_none_has_no_score(tmp_path) -> None:
    args = PPOConfig(str(tmp_path), per_device_train_batch_size=2, bf16=False, reward_weights=[2.0, 3.0])
    sources = ScoreSources({}, [some, none], args)
    sources.bind([some, none], ["some", "none"])
    assert sources.may_be_silent
    found = sources.of_batch({}, torch.tensor([[1.0, NAN], [NAN, NAN], [NAN, 5.0], [1.0, 5.0]]))
    assert found.raw.nan_to_num(-1).tolist() == [2, -1, 15, 17]
    assert found.by_source["some"].tolist() == [1, 0, 0, 1]
    sources = ScoreSources({"joint": "an/adapter"}, [none], args)
    sources.bind([none], ["none"])
    assert not sources.may_be_silent
    found = sources.of_batch({"joint": torch.tensor([1.0, NAN])}, torch.tensor([[NAN], [NAN]]))
    assert found.raw.nan_to_num(-1).tolist() == [2, -1], "what a reward model says is kept, to be refused"
    sources = ScoreSources({}, [nn.Linear(1, 1)], PPOConfig(str(tmp_path), bf16=False))
    sources.bind([nn.Linear(1, 1)], ["model"])
    assert not sources.may_be_silent


def test_fault_26_a_reply_without_a_score_is_as_good_as_the_others_to_its_prompt() -> None:
    scores = torch.tensor([[1.0, NAN, 4.0], [NAN, NAN, 2.0], [NAN, NAN, NAN]])
    assert neutral_where_silent(scores).tolist() == [[1, 2.5, 4], [2, 2, 2], [0, 0, 0]]
    check_some_scored(1, 8)
    with pytest.raises(RunError, match=r"No response of 8 has a score: every function .* returned None"):
        check_some_scored(0, 8)


def one_nan(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.0] * (len(completions) - 1) + [NAN]


def weights_of(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(("function", "words"), [(one_nan, "returned nan for row"), (none, "No response of")])
def test_fault_26_ppo_stops_before_its_weights_change(base_folder, tmp_path, function, words) -> None:
    trainer = make_trainer(base_folder, tmp_path, None, reward_funcs=[function])
    before = weights_of(trainer)
    with pytest.raises(RunError, match=words):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.slow
def test_fault_25_ppo_takes_the_mean_for_rows_without_a_score_and_counts_them(base_folder, tmp_path, capsys) -> None:
    trainer = make_trainer(base_folder, tmp_path, None, reward_funcs=[some])
    trainer.train()
    logged = [line["objective/unscored"] for line in trainer.state.log_history if "objective/unscored" in line]
    assert logged
    assert set(logged) == {0.5}
    assert capsys.readouterr().out.count("have no score") == 1, "told once"
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    scores = [line["objective/scores"] for line in trainer.state.log_history if "objective/scores" in line]
    rows = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
    assert scores[0] == pytest.approx(sum(range(0, rows, 2)) / len(range(0, rows, 2))), (
        "the mean of those that have one"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_fault_25_methods_of_groups_do_likewise(kind, base_folder, tmp_path) -> None:
    trainer = make(kind, base_folder, tmp_path, functions=(some,))
    replies, ids = [f"reply {i}" for i in range(len(PROMPTS))], [[5, 6]] * len(PROMPTS)
    trainer.score = lambda *a: torch.tensor([1.0, NAN] * (len(PROMPTS) // 2))
    trainer.missing_eos_penalty = 0.0
    paid = trainer._calculate_rewards([{"prompt": prompt} for prompt in PROMPTS], PROMPTS, replies, ids)
    assert paid.flatten().tolist() == [1.0] * len(PROMPTS)
    trainer.score = lambda *a: torch.full((len(PROMPTS),), NAN)
    with pytest.raises(RunError, match="No response of"):
        trainer._calculate_rewards([{"prompt": prompt} for prompt in PROMPTS], PROMPTS, replies, ids)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_fault_27_a_reward_model_that_says_no_number_stops_every_method(
    kind, base_folder, reward_folder, tmp_path
) -> None:
    trainer = make(kind, base_folder, tmp_path, adapters={"joint": reward_folder})
    for wrong in (NAN, INF):
        trainer.score = lambda *a, wrong=wrong: torch.tensor([wrong] + [0.0] * (len(PROMPTS) - 1))
        with pytest.raises(NonFiniteError, match=r"not finite; the first is (nan|inf) for prompt"):
            trainer._calculate_rewards([{}] * len(PROMPTS), PROMPTS, ["a"] * len(PROMPTS), [[5]] * len(PROMPTS))


def test_best_of_n_knows_which_replies_have_none() -> None:
    sources = Sources({}, [f"{__name__}:some"], BestOfNOptions(), 0)
    assert sources.may_be_silent


SUITE = OwnSuite("mine", f"{__name__}:of_suite", [Source(source="p.jsonl")])
ASKED = [Prompt([{"role": "user", "content": text}], "overall", Origin("p.jsonl", i)) for i, text in enumerate("ab", 1)]


@pytest.mark.parametrize(
    "value", [v for n, (v, _) in WRONG.items() if n not in ("more than float32 has",)],
    ids=[name for name in WRONG if name != "more than float32 has"],
)  # fmt: skip
def test_fault_25_functions_of_suites_are_held_to_the_same(value, monkeypatch) -> None:
    function = returning(value)
    monkeypatch.setattr(sys.modules[__name__], "of_suite", lambda prompts, replies: function(replies), raising=False)
    with pytest.raises(RecipeError, match=f"The function {__name__}:of_suite of the suite 'mine'"):
        score_replies(SUITE, ASKED, ["long text", "short"])


def test_a_module_that_ends_the_process_when_it_is_imported_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ending_script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(RecipeError, match=r"'ending_script:f' cannot be loaded: SystemExit: 0 \(.*line 2\)"):
        load_function("ending_script:f")


@pytest.mark.slow
def test_a_function_that_ends_the_process_does_not_end_the_run_as_if_it_were_done(
    base_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ending_rewards.py").write_text("import sys\ndef f(completions, **kwargs):\n    sys.exit(0)\n")
    options = {"total_episodes": 8, "per_device_train_batch_size": 4, "response_length": 8}
    recipe_on(base_folder, tmp_path, pairs(60), reward=None, sft=None,
              ppo={**options, "reward_funcs": ["ending_rewards:f"]})  # fmt: skip
    done = ask("run", "recipe.yaml")
    assert done.exit_code == 1
    assert "ending_rewards:f failed: SystemExit: 0" in done.stderr
    assert not (tmp_path / "runs/faulty/ppo").exists()
    assert Path("runs/faulty/partial-ppo").exists()
    (tmp_path / "ending_imported.py").write_text("import sys\nsys.exit(0)\n")
    refused(ask("run", "recipe.yaml", "ppo.reward_funcs=['ending_imported:f']", "output_dir=other"), "SystemExit: 0")
