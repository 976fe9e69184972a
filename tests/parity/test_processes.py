"""One process or two: the same rollout gives the same loss, gradients and statistics."""

import math
import os
import time

import ddp_evaluation
import ddp_gradients
import ddp_without_gradient
import launching
import pytest
import torch
from launching import Launch
from ppo_helpers import responses_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def one_and_two(request, base_folder, reward_folder, tmp_path_factory) -> dict[str, tuple[dict, dict]]:
    """What one process and what two found of the same rollout, by value role."""
    folder = tmp_path_factory.mktemp("processes")
    arguments = (base_folder, reward_folder, folder, request.param == "fsdp2")
    Launch(ddp_gradients.main, arguments, 2, folder / "said").finish()
    found = {}
    for value in ("shared", "adapter"):
        one = ddp_gradients.measure(base_folder, reward_folder, folder, value)
        two = torch.load(folder / f"{value}.pt", weights_only=True)
        assert (one["world"], two["world"]) == (1, 2)
        found[value] = (one, two)
    return found


@pytest.fixture(scope="module")
def shared(one_and_two) -> tuple[dict, dict]:
    return one_and_two["shared"]


@pytest.mark.parametrize("value", ["shared", "adapter"])
def test_invariant_12_fault_40_two_processes_give_the_gradients_of_one(one_and_two, value) -> None:
    one, two = one_and_two[value]
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        # fp32 sums in another order; gradients here are of order 0.1.
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name, value_of_one in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value_of_one, abs=1e-5), name


def test_invariant_07_each_process_gives_its_rows_their_own_function_scores(shared) -> None:
    """The function pays a hundredth of the first token's id."""
    one, two = shared
    firsts = [ids[0] / 100 for ids in responses_of(0)]
    for found in (one, two):
        # fp32 mean of eight numbers of order 1
        assert found["metrics"]["scores/first_token"] == pytest.approx(sum(firsts) / 8, abs=1e-6)


def test_invariant_11_score_moments_are_of_all_processes_rows(shared) -> None:
    one, two = (found["moments"]["all"] for found in shared)
    assert one["count"] == two["count"] == 8
    for name, moment in one.items():
        assert two[name] == pytest.approx(moment, rel=1e-5), name  # of fp32 scores read at other padded widths


def test_invariant_10_the_controller_counts_the_episodes_of_all_processes(shared) -> None:
    """Eight responses far from the target of .1 in one direction: a fifth of 8 / 100 up or down."""
    for found in shared:
        kl = found["metrics"]["objective/kl"]
        assert abs(kl / 0.1 - 1) > 0.2
        assert found["kl_coef"] == pytest.approx(0.05 * (1 + math.copysign(0.2, kl / 0.1 - 1) * 8 / 100), rel=1e-12)


def test_invariant_14_processes_do_not_share_their_random_numbers(shared) -> None:
    one, two = (found["drawn"] for found in shared)
    assert one[0] == two[0]  # the first process of two draws as one alone
    assert two[0] != two[1]


def test_two_processes_do_not_wait_for_gradients_that_never_come(base_folder, tmp_path) -> None:
    said = Launch(ddp_without_gradient.main, (base_folder, tmp_path), 2, tmp_path / "said").finish()
    assert "note: 4 parameters get no gradient and stay as they are" in said


def test_an_evaluation_counts_every_prompt_once(base_folder, tmp_path) -> None:
    """Scores of 1 to 9 have a mean of 5; seven of the sixteen rows that two processes are dealt fill up."""
    Launch(ddp_evaluation.main, (base_folder, tmp_path), 2, tmp_path / "said").finish()
    for replies in (1, 2):  # to each prompt, 18 rows of which fill two batches of two processes and two rows more
        alone = ddp_evaluation.measure(base_folder, tmp_path, num_generations_eval=replies)
        for found in (alone, torch.load(tmp_path / f"evaluation-{replies}.pt")):
            assert found["eval_objective/scores"] == pytest.approx(5)
            assert found["eval_overall/scores"] == pytest.approx(5)
    of_replies = torch.load(tmp_path / "of-replies.pt")  # of which those to the prompts that fill up are others
    assert of_replies["mean of rows"] == pytest.approx(of_replies["eval_objective/scores"], rel=1e-6)
    assert of_replies["eval_overall/scores"] == pytest.approx(of_replies["eval_objective/scores"], rel=1e-6)


def second_fails() -> None:
    if os.environ["RANK"] == "1":
        raise SystemExit(7)
    time.sleep(600)


def test_a_launch_of_which_one_process_fails_ends_at_once(tmp_path) -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"\[None, 7\]"):
        Launch(second_fails, (), 2, tmp_path).finish()
    assert time.monotonic() - began < 300


def test_a_launch_that_has_ended_is_not_waited_for(tmp_path, monkeypatch) -> None:
    """Waiting for no process takes all the time that is given."""
    launch = Launch(print, ("said",), 2, tmp_path / "said")
    for process in launch._processes:
        process.join(60)
    monkeypatch.setattr(launching, "wait", None)
    assert launch.finish() == "said\n" * 2
