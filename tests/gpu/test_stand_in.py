"""The device that stands in for a GPU: that it is one, and what PPO would wait for on it."""

import contextlib
import copy
import gc
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_helpers import fixed_responses, make_trainer
from transformers import AutoModelForCausalLM, TrainerCallback

from llm_rlhf import RewardModel

pytestmark = pytest.mark.skipif(
    os.environ.get("LLM_RLHF_TEST_DEVICE") != "stand-in", reason="these are of the stand-in, which other runs have not"
)
if os.environ.get("LLM_RLHF_TEST_DEVICE") == "stand-in":
    from stand_in import room_for, waits

HERE, N = Path(__file__).parent, torch.arange(4)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + N,
        lambda x: x.add_(N),
        lambda x: torch.cat([x, N]),
        lambda x: x.index_select(0, N),
        lambda x: torch.where(x > 0, x, N),
        lambda x: torch.nn.functional.embedding(N, x.float().view(2, 2)),
        lambda x: N[x],
        lambda x: x.index_put_((x > 1,), N[2:]),
        lambda x: x.float() @ N.float(),
    ],
)
def test_a_tensor_of_the_cpu_may_not_be_among_its_own(device, mix) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mix(N.to(device))


@pytest.mark.parametrize("mix", [lambda x: x[N], lambda x: x * N[2], lambda x: x.copy_(N), lambda x: x.cpu() + N])
def test_what_a_gpu_allows_it_allows(device, mix) -> None:
    assert mix(N.to(device)).tolist() == mix(N.clone()).tolist()


def test_a_model_learns_on_it_what_it_learns_on_the_cpu(device, wide_base) -> None:
    """Views, writes in place, outputs that grow, backward in a thread of the device: the same kernels, the same loss.
    Backward, torch's own formulas differ by device here and there, in the last bits of sums of up to 0.6."""
    here = AutoModelForCausalLM.from_pretrained(wide_base, attn_implementation="eager")
    there, first = copy.deepcopy(here).to(device), copy.deepcopy(here)
    ids, losses = torch.arange(24).view(2, 12), []
    for model in (here, there):
        given = ids.to(model.device)
        loss = model(input_ids=given, labels=given).loss
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    learned = zip(here.named_parameters(), there.parameters(), first.parameters(), strict=True)
    for (name, one), other, before in learned:
        assert other.is_cuda
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=1e-6, msg=name)
        assert (one - before).abs().max() > 1e-3, name


def test_half_precision_and_products_in_float32(device) -> None:
    a, b = (torch.randn(8, 8) for _ in range(2))
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal((a.to(device) @ b.to(device)).cpu(), a.bfloat16() @ b.bfloat16())
    wide = torch.mm(a.bfloat16().to(device), b.bfloat16().to(device), out_dtype=torch.float32)
    assert torch.equal(wide.cpu(), a.bfloat16().float() @ b.bfloat16().float())


def test_it_draws_by_a_generator_of_its_own(device) -> None:
    torch.manual_seed(3)
    first = torch.rand(3, device=device)
    torch.manual_seed(3)
    torch.rand(5)  # of the CPU, which moves the CPU's alone
    state = torch.cuda.get_rng_state_all()
    assert len(state) == 1
    assert torch.equal(torch.rand(3, device=device), first)
    second = torch.rand(3, device=device)
    assert not torch.equal(second, first)
    torch.cuda.set_rng_state_all(state)
    assert torch.equal(torch.rand(3, device=device), first)


def test_its_memory_is_what_its_tensors_hold(device) -> None:
    before = torch.cuda.memory_allocated()
    x = torch.empty(1000, device=device)
    assert torch.cuda.memory_allocated() - before == 4000
    view, doubled = x[10:].view(33, 30), x * 2
    assert torch.cuda.memory_allocated() - before == 8000
    assert torch.cuda.max_memory_allocated() - before >= 8000
    del x, doubled
    assert torch.cuda.memory_allocated() - before == 4000  # which the view keeps
    del view
    assert torch.cuda.memory_allocated() == before
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == before
    assert torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] == before


def test_its_memory_runs_out(device) -> None:
    x = torch.empty(1000, device=device)
    with room_for(torch.cuda.memory_allocated() + 4000):
        y = x + 1
        with pytest.raises(torch.OutOfMemoryError, match="4000 bytes where 0 of"):
            y + 1
        del y
        assert (x + 1).numel() == 1000


def test_it_tells_where_the_cpu_waits(device) -> None:
    with waits() as found:
        x = torch.ones(3, device=device)
        x = x.exp() + 1
        assert not found
        assert bool(x[0] > 0)
        assert x.sum().item() > 0
        assert x.tolist()
        x.to("cpu", non_blocking=True)
        assert len(x[x > 0]) == 3
        torch.tensor([1.0], device=device)
        with waits() as inner:
            assert torch.equal(x, x)
        x.requires_grad_().sum().backward()
    assert sorted(what.split(",")[0] for what in found.elements()) == [
        "a copy to the CPU", "a copy to the device", "a number", "a number", "aten::nonzero",
    ]  # fmt: skip
    assert all("test_stand_in.py" in what for what in found)
    assert [what.split(",")[0] for what in inner] == ["aten::equal"]


def test_a_copy_of_its_tensors_and_what_is_loaded_lie_on_it(device, tmp_path) -> None:
    x = torch.arange(6.0, device=device)[2:].view(2, 2)
    again = copy.deepcopy({"x": x, "twice": x})
    assert again["x"] is again["twice"]
    again["x"] += 1
    assert x.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    torch.save({"x": x}, tmp_path / "x.pt")
    for where in (device, "cpu"):
        loaded = torch.load(tmp_path / "x.pt", map_location=where)["x"]
        assert loaded.device.type == torch.device(where).type
        assert loaded.tolist() == x.tolist()
    flat = torch.arange(4.0, device=device)
    flat.untyped_storage().resize_(0)
    assert flat.untyped_storage().nbytes() == 0
    flat.untyped_storage().resize_(16)
    assert flat.fill_(1).tolist() == [1.0] * 4


def test_memory_is_pinned_where_it_is_asked_for(device) -> None:
    x = torch.ones(3)
    assert not x.is_pinned()
    assert x.pin_memory().is_pinned()
    assert torch.empty(2, pin_memory=True).is_pinned()
    with pytest.raises(RuntimeError, match="pin"):
        x.to(device).pin_memory()


TWO = """
import threading
import torch

def refused(work, words):
    try:
        work()
    except RuntimeError as error:
        assert words in str(error)
        return
    raise AssertionError(words)

assert torch.cuda.device_count() == 2
a, b = (torch.ones(3, device=f"cuda:{i}") for i in range(2))
assert (a + a).get_device() == 0 and (b * 2).get_device() == 1
assert torch.zeros_like(b).get_device() == b[1:].get_device() == b.clone().get_device() == 1
assert torch.arange(3, device="cuda:1").get_device() == 1
assert torch.nn.functional.scaled_dot_product_attention(*[b.view(1, 1, 3, 1)] * 3).get_device() == 1
for mix in (lambda: a + b, lambda: torch.cat([a, b]), lambda: a @ b):
    refused(mix, "same device")
assert a.copy_(b).get_device() == 0 and b.to(a.device).get_device() == 0
held = [torch.cuda.memory_allocated(i) for i in range(2)]
more = torch.empty(1000, device="cuda:1")
assert [torch.cuda.memory_allocated(i) for i in range(2)] == [held[0], held[1] + 4000]
with torch.cuda.device(1):
    assert torch.empty(2, device="cuda").get_device() == 1
assert torch.cuda.current_device() == 0
torch.cuda.set_device(1)
assert torch.empty(2, device="cuda").get_device() == 1
found = []
threading.Thread(target=lambda: found.append(torch.cuda.current_device())).run()
thread = threading.Thread(target=lambda: found.append(torch.cuda.current_device()))
thread.start(); thread.join()
assert found == [1, 0], found  # as on a GPU a new thread begins with the first
torch.manual_seed(0)
first = torch.rand(3, device="cuda:0")
assert torch.equal(torch.rand(3, device="cuda:1").cpu(), first.cpu())  # each by a generator of its own
x = torch.ones(2, device="cuda:1", requires_grad=True)
(x * 3).sum().backward()
assert x.grad.get_device() == 1 and x.grad.tolist() == [3.0, 3.0]
refused(lambda: torch.empty(1, device="cuda:2"), "invalid device")
refused(lambda: torch.cuda.set_device(2), "invalid device")
"""


def run(*command: str, **told: str) -> None:
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | {"STAND_IN_DEVICES": "2"} | told, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_of_two_devices_each_has_its_tensors_memory_and_numbers(device) -> None:
    run("-c", TWO)
    run("-c", "import torch; assert torch.cuda.device_count() == 1", CUDA_VISIBLE_DEVICES="1")
    run("-c", "import torch; assert not torch.cuda.is_available()", CUDA_VISIBLE_DEVICES="")


def test_processes_speak_as_by_nccl(device) -> None:
    run("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(HERE / "speaking.py"))


# ---- PPO -----------------------------------------------------------------------------------------------------------


def trainer(base: Any, reward: Any, folder: Any, **options: Any) -> Any:
    quiet = {"logging_nan_inf_filter": False, "num_ppo_epochs": 1, "learning_rate": 1e-12}  # the first as of a recipe
    return make_trainer(base, folder, reward, use_cpu=False, **quiet, **options)


def test_a_compiled_step_of_decoding_waits_for_nothing(device, wide_base, wide_reward, tmp_path) -> None:
    """Only whether all replies have ended is asked, every 16th step. Two lengths differ by what a step waits for."""
    found = []
    for length in (17, 33):
        how = {"decoding": "compiled", "response_length": length, "total_episodes": 16}
        made = trainer(wide_base, wide_reward, tmp_path / str(length), **how)
        for _ in (1, 2):  # the first time compiles
            with waits() as seen:
                made._generate([row["prompt"] for row in made.train_dataset])
        found.append(sum(seen.values()))
    assert 0 < found[1] - found[0] <= 3  # asked once more: how many are left, once or twice, and whether to stop


def test_an_update_waits_three_times_a_micro_batch_at_most(device, wide_base, wide_reward, tmp_path) -> None:
    """transformers asks twice whether its mask hides anything; and the loss must be finite before it is learned of."""
    how = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "total_episodes": 16}
    made = trainer(wide_base, wide_reward, tmp_path, **how)
    found: list[Counter[str]] = []
    step = made._compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        with waits() as seen:
            loss = step(*args, **kwargs)
        found.append(seen)
        return loss

    made._compute_loss = compute_loss
    made.train()
    assert len(found) == 2 * 4
    for seen in found:
        assert {what.split(":")[-2].split("/")[-1] for what in seen} <= {"masking_utils.py", "finite.py"}
        assert 2 <= sum(seen.values()) <= 3


# ---- memory that runs out ------------------------------------------------------------------------------------------


class Update(TrainerCallback):
    """A trainer's first update, with its gradients, and the most it takes; in so much memory, where that is said."""

    def __init__(self, made: Any, room: int | None = None) -> None:
        self.limits, compute = contextlib.ExitStack(), made._compute_loss
        self.most = 0
        self.gradients: dict[str, torch.Tensor] = {}

        def compute_loss(*args: Any) -> Any:
            gc.collect()
            if room is not None:
                self.limits.enter_context(room_for(torch.cuda.memory_allocated() + room))
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            made._compute_loss = compute  # the next time it is the same update in pieces
            return compute(*args)

        made._compute_loss = compute_loss
        made.add_callback(self)
        made.train()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.most = torch.cuda.max_memory_allocated() - self.before
        self.limits.close()
        parameters = kwargs["model"].named_parameters()
        self.gradients = {n: p.grad.cpu() for n, p in parameters if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_that_does_not_fit_is_made_in_halves_that_do(
    device, wide_base, wide_reward, tmp_path, capsys, checkpointing
) -> None:
    """There is as much memory as the halves take and a hundredth more: all that failed before must be free again."""

    def update(name: str, tokens: int | None = None, room: int | None = None) -> tuple[Update, int]:
        made = trainer(
            wide_base, wide_reward, tmp_path / name, total_episodes=8, response_length=64,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        fixed_responses(made, [[5 + (7 * row + i) % 200 for i in range(64)] for row in range(8)])
        if tokens is not None:
            made._update.tokens = tokens
        return Update(made, room), made._largest_piece[0] * made._largest_piece[1]

    whole, tokens = update("whole")
    halves, _ = update("halves", tokens=tokens // 2)
    assert halves.most < 0.7 * whole.most  # half, and what does not grow with rows
    capsys.readouterr()
    found, _ = update("found", room=int(1.01 * halves.most))
    said = "".join(capsys.readouterr())
    assert said.count("memory ran out in the update") == said.count("over 8 rows") == 1
    assert len(whole.gradients) > 10
    for name, gradient in whole.gradients.items():
        assert torch.equal(found.gradients[name], halves.gradients[name])
        # Sums of eight rows' terms in another order.
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def taken(work: Any, room: int | None = None) -> tuple[int, Any]:
    """Bytes that some work takes at most beyond those that are held before, and what it finds; in so much memory."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with contextlib.nullcontext() if room is None else room_for(before + room):
        found = work()
    return torch.cuda.max_memory_allocated() - before, found


def test_scoring_that_does_not_fit_is_done_in_halves_that_do(device, wide_base, wide_reward, tmp_path, capsys) -> None:
    found: list[tuple[int, Any]] = []
    for number, share in enumerate((None, 0.7, 1.01)):  # the last: no more than the halves take
        made = trainer(wide_base, wide_reward, tmp_path / str(number), total_episodes=8, response_length=64)
        fixed_responses(made, [[5 + (7 * row + i) % 200 for i in range(64)] for row in range(8)])
        rows = list(made.train_dataset)[:8]
        capsys.readouterr()
        found.append(taken(partial(made._rollout, rows), share and int(share * found[-1][0])))
        assert "".join(capsys.readouterr()).count("memory ran out in scoring") == (share is not None)
    assert found[1][0] < 0.7 * found[0][0]  # which was the room
    (whole,), *others = (batches for _, batches in found)
    for (batch,) in others:
        for name in ("old_logprobs", "old_values", "raw_scores", "advantages"):
            # Rows of the same width by themselves, whose products other kernels make.
            torch.testing.assert_close(getattr(batch, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoding", ["plain", "compiled"])
def test_sampling_that_does_not_fit_is_done_in_halves_that_do(
    device, wide_base, wide_reward, tmp_path, capsys, decoding
) -> None:
    """The replies themselves are others, as a GPU draws for the rows that are together."""
    found: list[tuple[int, Any]] = []
    for number, share in enumerate((None, 0.7)):
        made = trainer(
            wide_base, wide_reward, tmp_path / str(number), total_episodes=8, response_length=64, decoding=decoding
        )
        prompts = [row["prompt"] for row in made.train_dataset][:8]
        capsys.readouterr()
        found.append(taken(partial(made._generate, prompts), share and int(share * found[-1][0])))
        assert "".join(capsys.readouterr()).count("memory ran out in sampling") == (share is not None)
    assert found[1][0] < 0.7 * found[0][0]  # which was the room
    for _, (asked, replies, *_) in found:
        assert asked == found[0][1][0]
        assert len(replies) == 8
        assert all(0 < len(ids) <= 64 for ids in replies)


def test_a_reward_model_by_itself_scores_what_does_not_fit_in_halves(device, wide_reward) -> None:
    model = RewardModel.from_pretrained(wide_reward, device=device)
    talks = [
        [{"role": "user", "content": f"{i} " + "why " * 8}, {"role": "assistant", "content": "so " * (8 + i)}]
        for i in range(12)
    ]
    need, whole = taken(partial(model.score, talks))
    less, halves = taken(partial(model.score, talks), int(0.7 * need))
    assert less <= 0.7 * need
    # Rows padded to other widths: float32's last bits, two layers on.
    np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-5)
