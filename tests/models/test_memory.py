"""Work that is done again in halves where memory runs out."""

import pytest
import torch
from transformers import GPT2Config, Qwen2Config

from llm_rlhf.errors import RunError
from llm_rlhf.models import memory
from llm_rlhf.models.inference import in_batches
from llm_rlhf.models.memory import Portion, ran_out, token_budget

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Device:
    """Sums numbers; full over so many rows."""

    def __init__(self, holds: int) -> None:
        self.holds, self.tried = holds, []

    def __call__(self, rows) -> list[int]:
        self.tried.append(len(rows))
        if len(rows) > self.holds:
            raise torch.OutOfMemoryError(FULL)
        return [2 * row for row in rows]


def test_a_portion_is_halved_until_it_fits_and_stays_so() -> None:
    notes: list[str] = []
    portion, device = Portion("sampling", "this or that", notes.append), Device(3)
    parts = portion.run(device, range(10), width=7)
    assert device.tried == [10, 5, 3, 3, 3, 1]
    assert [x for part in parts for x in part] == [2 * i for i in range(10)]
    assert portion.tokens == 21
    device.tried.clear()
    portion.run(device, range(4), width=5)  # 4 rows of 5 tokens are fewer than 21, and too many for this device
    assert device.tried == [4, 2, 2]
    assert len(notes) == 3
    assert "in sampling, over 10 rows of 7 tokens; from here on it takes at most 35 tokens at once" in notes[0]


def test_one_row_that_does_not_fit_says_what_to_lower() -> None:
    with pytest.raises(RunError, match=r"ran out in sampling, at a single row of 7 tokens; lower this or that.*2\.00"):
        Portion("sampling", "this or that", lambda _: None).run(Device(0), range(2), width=7)


def test_where_processes_wait_for_each_other_nothing_is_tried_again() -> None:
    device = Device(3)
    with pytest.raises(
        RunError, match=r"ran out in scoring, over 10 rows of 7 tokens, .* lower this or that\. \(CUDA out"
    ):
        Portion("scoring", "this or that", halves=False).run(device, range(10), width=7)
    assert device.tried == [10]


def test_other_errors_are_not_taken_for_it() -> None:
    def broken(rows) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Portion("sampling", "this").run(broken, range(2), width=7)
    assert ran_out(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert not ran_out(MemoryError())
    assert not ran_out(RunError(FULL))  # it quotes one, and is the end


def test_the_token_budget_by_hand() -> None:
    """Qwen2.5 0.5B: a layer keeps 2 x (10 x 896 + 4 x 4,864) = 56,832 bytes a token; checkpointed 43,008 + 113,664."""
    config = Qwen2Config(hidden_size=896, intermediate_size=4864, num_hidden_layers=24)
    assert token_budget(config, True, 2 * 156_672 * 1000) == 1000
    assert token_budget(config, False, 2 * 25 * 56_832 * 1000) == 1000
    assert token_budget(config, True, 2**40) == 16_384
    assert token_budget(config, True, 0) == 1
    assert token_budget(GPT2Config(n_embd=8, n_layer=1), True, 2 * (16 + 2 * 416) * 7) == 7


def test_what_an_evaluation_reads_keeps_its_order(capsys) -> None:
    rows = [[i] * n for i, n in enumerate([3, 9, 1, 4, 7])]
    device = Device(2)
    assert in_batches([i for i, _ in enumerate(rows)], device, 4, lambda i: len(rows[i])) == [0, 2, 4, 6, 8]
    assert device.tried == [4, 2, 2, 1]
    assert "memory ran out" in capsys.readouterr().out


def test_on_a_gpu_a_batch_holds_no_more_tokens_than_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 tokens: the batch of 20, 6 and 6 is read row by row, as wide as they are padded to; those of 2 together."""
    monkeypatch.setattr(memory, "ENOUGH", 12)
    lengths = [2, 6, 2, 20, 2, 6, 2]
    batches: list[list[int]] = []

    def read(batch: list[int]) -> list[int]:
        batches.append([lengths[i] for i in batch])
        return [10 * i for i in batch]

    def found(device: str | None) -> list[list[int]]:
        batches.clear()
        assert in_batches(range(7), read, 3, lambda i: lengths[i], device=device) == [0, 10, 20, 30, 40, 50, 60]
        return list(batches)

    assert found("cuda") == [[20], [6], [6], [2, 2, 2], [2]]
    assert found("cpu") == found(None) == [[20, 6, 6], [2, 2, 2], [2]]
