"""SIGTERM ends a training in time, with a checkpoint from which the same bits come as without it."""

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chain_helpers import copy
from datasets import Dataset
from launching import Launch, start
from method_helpers import make
from ppo_helpers import make_trainer
from transformers import TrainerCallback

from llm_rlhf import checkpoints, interruption, stopping
from llm_rlhf.errors import RecipeError
from llm_rlhf.interruption import Terminated
from llm_rlhf.methods.training import train_policy
from llm_rlhf.ppo.trainer import PPOTrainer
from llm_rlhf.run_folder import RunFolder

KEPT_BACK = [{"prompt": [{"role": "user", "content": f"kept back {i}"}], "objective": "helpful"} for i in range(4)]
STEPS = 4  # optimizer steps of a rollout; there are four rollouts of four responses


@pytest.fixture(autouse=True)
def nobody_ends_the_tests(monkeypatch) -> None:
    """The thread that ends a process in time would end pytest."""
    monkeypatch.setattr(interruption, "_end_in_time", lambda *args: None)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def at_call(number: int, function: Any) -> Any:
    """The function; when it is called for the so-manieth time, SIGTERM comes first."""
    calls = iter(range(1, 10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            terminate()
        return function(*args, **kwargs)

    return wrapped


def ppo(base: Path, reward: Path, folder: Path, **options: Any) -> PPOTrainer:
    trainer = make_trainer(
        base, folder, reward, per_device_train_batch_size=1, num_mini_batches=2, num_ppo_epochs=2, total_episodes=16,
        gradient_accumulation_steps=2, save_strategy="steps", save_rollouts=100, adaptive_kl_target=0.05,
        adaptive_kl_horizon=100, score_normalization="whiten", eval_dataset=Dataset.from_list(KEPT_BACK),
        eval_strategy="steps", eval_rollouts=1, per_device_eval_batch_size=2, **options,
    )  # fmt: skip
    trainer.samples_file = folder / "samples.jsonl"
    return trainer


def train(trainer: PPOTrainer, found: Path | None = None) -> None:
    stopping.train(trainer, found)


PLACES = {  # of the PPO trainer: which method is called for the so-manieth time as the signal comes, and what is saved
    "first rollout": ("_generate_part", 3, 0),  # after two batches of the evaluation of the start
    "sampling": ("_generate_part", 8, 8),  # rollouts and evaluations in turns: 2, 1, 2, 1, 2, 1, 2, 1, 2
    "scoring": ("_score", 17, 8),
    "evaluation": ("_generate_part", 7, 8),
    "between": ("finish_step", 8, 8),
    "update": ("finish_step", 6, 8),
    "last step": ("finish_step", 16, 16),
    "long update": ("finish_step", 6, 4),  # back to before the rollout that it learns from
    "long first update": ("finish_step", 2, 0),
}


@pytest.fixture(scope="module")
def whole(base_folder, reward_folder, tmp_path_factory) -> PPOTrainer:
    """The training that nothing disturbs."""
    trainer = ppo(base_folder, reward_folder, tmp_path_factory.mktemp("whole"))
    train(trainer)
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("place", list(PLACES))
def test_fault_05_a_terminated_ppo_ends_with_the_same_bits(
    place, whole, base_folder, reward_folder, tmp_path, monkeypatch
) -> None:
    method, call, saved = PLACES[place]
    if place.startswith("long"):
        monkeypatch.setattr(stopping, "FEW_SECONDS", -1.0)
    stopped = ppo(base_folder, reward_folder, tmp_path / "again")
    setattr(stopped, method, at_call(call, getattr(stopped, method)))
    with interruption.listening(), pytest.raises(Terminated) as ended:
        train(stopped)
    assert ended.value.code == 143
    found = checkpoints.latest(tmp_path / "again")
    assert (0 if found is None else found.step) == saved
    assert ended.value.told.removesuffix(" (training was at step 6)") == (
        f"the newest checkpoint is of optimizer step {saved}"
        if saved
        else "this stage has no checkpoint yet and begins anew"
    )
    again = ppo(base_folder, reward_folder, tmp_path / "again")
    if found is None:
        shutil.rmtree(tmp_path / "again")
        (tmp_path / "again").mkdir()
    train(again, found and found.path)
    expected = dict(whole.model.named_parameters())
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for log in ("samples.jsonl", "snapshots.jsonl", "watch.jsonl"):
        old, new = ((Path(trainer.args.output_dir) / log).read_text() for trainer in (whole, again))
        assert old == new, log
    histories = [[dict(line) for line in trainer.state.log_history] for trainer in (whole, again)]
    for line in (*histories[0], *histories[1]):
        for clock in [k for k in line if "time" in k or "per_second" in k or k == "train_loss"]:
            del line[clock]
    assert histories[0] == histories[1]
    assert again.kl_controller.value == whole.kl_controller.value != whole.args.kl_coef
    assert again.score_moments.state_dict() == whole.score_moments.state_dict()


def test_fault_06_a_second_sigterm_in_the_middle_of_the_save_changes_nothing(
    base_folder, reward_folder, tmp_path
) -> None:
    """Slurm sends one to every process of a job, and torchrun hands on its own."""
    trainer = ppo(base_folder, reward_folder, tmp_path)
    trainer.finish_step = at_call(3, trainer.finish_step)
    for method in ("_save_optimizer_and_scheduler", "_save_rng_state"):
        setattr(trainer, method, at_call(1, getattr(trainer, method)))
    with interruption.listening(), pytest.raises(Terminated, match="143"):
        train(trainer)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == STEPS


METHODS = {  # which method is called for the so-manieth time as the signal comes, and what is saved
    "dpo": ("compute_loss", 5, 2),  # in the first micro-batch of the third step: as after the second
    "grpo": ("_generate_single_turn", 2, 2),  # two steps learn from a rollout
    "rloo": ("score", 2, 2),
    "best_of_n": ("compute_loss", 4, 2),  # in the last micro-batch of the second step
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(METHODS))
def test_fault_05_terminated_methods_end_with_the_same_bits(kind, base_folder, reward_folder, tmp_path) -> None:
    method, call, saved = METHODS[kind]
    online = kind in ("grpo", "rloo")
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 100, "max_steps": 6, "logging_steps": 2}
    if online:
        options |= {"per_device_train_batch_size": 4, "steps_per_generation": 2, "beta": 0.1}
    else:
        options |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}

    def started(folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        return make(kind, base_folder, folder, {"joint": reward_folder}, **options)

    def run(trainer: Any) -> None:
        folder = Path(trainer.args.output_dir)
        train_policy(trainer, RunFolder(tmp_path), folder, kind, {})

    run(started(tmp_path / "whole"))
    stopped = started(tmp_path / "again")
    setattr(stopped, method, at_call(call, getattr(stopped, method)))
    with interruption.listening(), pytest.raises(Terminated) as ended:
        run(stopped)
    assert ended.value.told.startswith(f"the newest checkpoint is of optimizer step {saved}")
    run(started(tmp_path / "again"))
    one, two = (tmp_path / name / "policy" / "adapter_model.safetensors" for name in ("whole", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_outside_training_it_ends_what_is_going_on_at_once() -> None:
    def work() -> None:
        terminate()
        time.sleep(5)
        pytest.fail("went on")

    with interruption.listening(), pytest.raises(Terminated):
        work()
    assert not interruption.asked()


def test_handlers_are_as_they_were_afterwards_and_only_under_a_command() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruption.listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def _waits_in_c(grace: str) -> None:
    os.environ[interruption.VARIABLE] = grace
    with interruption.listening():
        ctypes.CDLL(None).system(b"echo waits; sleep 20")  # said from within; comes back to Python for no signal


@pytest.mark.slow
def test_fault_08_a_process_that_waits_in_a_library_ends_in_time(tmp_path) -> None:
    launched = Launch(_waits_in_c, ("1",), 1, tmp_path)
    _until(launched, lambda: "waits" in launched.out)
    began = time.monotonic()
    launched.send(signal.SIGTERM)
    assert launched.codes() == [143]
    assert time.monotonic() - began < 10
    assert "no safe point was reached within 1 seconds" in launched.errors


def _until(launched: Launch, condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert launched.runs, launched.errors
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG = ("ppo.total_episodes=960", "ppo.save_rollouts=1000")


def _run(run: Path, *overrides: str, processes: int = 1) -> Launch:
    asked = ["run", run.parent / "tiny.yaml", f"output_dir={run}", *LONG, *overrides]
    return start(*asked, processes=processes, folder=run.parent / "said")


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run folder that lacks its last two stages."""
    run = copy(finished, tmp_path)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_fault_05_a_command_ends_by_sigterm_with_143_and_says_how_to_go_on(processes, run) -> None:
    """Of two processes, though one alone is told."""
    launched = _run(run, processes=processes)
    _until(launched, lambda: _lines(run / "partial-ppo" / "metrics.jsonl") >= 4)
    launched.send(signal.SIGTERM, processes - 1)
    assert launched.codes() == [143] * processes, launched.errors
    found = checkpoints.latest(run / "partial-ppo")
    assert found is not None
    told = f"error: stopped by SIGTERM: the newest checkpoint is of optimizer step {found.step}"
    assert launched.errors.count(told) == 1
    assert "Run the same command again to go on." in launched.errors
    again = _run(run, f"ppo.total_episodes={960}", processes=processes)
    _until(again, lambda: "ppo was interrupted; it goes on from" in again.out)
    again.send(signal.SIGTERM)
    assert again.codes() == [143] * processes


@pytest.mark.slow
def test_fault_07_a_command_ends_by_ctrl_c_with_130_and_says_how_to_go_on(run) -> None:
    launched = _run(run)
    _until(launched, lambda: _lines(run / "partial-ppo" / "metrics.jsonl") >= 2)
    launched.send(signal.SIGINT)
    assert launched.codes() == [130]
    assert "error: interrupted. Run the same command again to go on" in launched.errors
    assert "Traceback" not in launched.errors


def test_fault_07_ctrl_c_that_meets_a_destructor_is_not_lost(base_folder, tmp_path, monkeypatch) -> None:
    """Python ignores what a destructor raises, so that the run would go on to its end."""
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: None)

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the handler runs here

    class Dies(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                Dying()

    trainer = make("dpo", base_folder, tmp_path, max_steps=6)
    trainer.add_callback(Dies())
    with interruption.listening(), pytest.raises(KeyboardInterrupt):
        stopping.train(trainer)
    assert trainer.state.global_step == 2


def test_fault_05_workers_that_die_of_the_same_signal_do_not_hide_it(base_folder, tmp_path) -> None:
    """A scheduler's signal goes to workers that load data, too, and torch raises where they die."""
    trainer = make(
        "best_of_n", base_folder, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=4,
        save_strategy="steps", save_steps=100,
    )  # fmt: skip
    compute_loss, calls = trainer.compute_loss, iter(range(9))

    def dies(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:  # the second step's last micro-batch
            terminate()
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = dies
    with interruption.listening(), pytest.raises(Terminated) as ended:
        stopping.train(trainer)
    assert ended.value.told == "the newest checkpoint is of optimizer step 1"
    assert checkpoints.latest(tmp_path) is not None


def test_an_error_without_a_signal_stays_what_it_is(base_folder, tmp_path) -> None:
    trainer = make("best_of_n", base_folder, tmp_path, max_steps=1)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a fault of ours")

    trainer.compute_loss = fails
    with interruption.listening(), pytest.raises(RuntimeError, match="a fault of ours"):
        stopping.train(trainer)


def test_a_grace_period_that_is_no_number_is_refused(monkeypatch) -> None:
    for value in ("soon", "0", "-1", "inf", "nan"):
        monkeypatch.setenv(interruption.VARIABLE, value)
        with pytest.raises(RecipeError, match=f"LLM_RLHF_GRACE_SECONDS is '{value}'"), interruption.listening():
            pass
