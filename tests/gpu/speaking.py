"""Two processes of a launch on stand-in devices: what they may say to each other, and what NCCL would refuse."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def refused(work: Callable[[], Any]) -> str:
    try:
        work()
    except (RuntimeError, ValueError) as error:
        return str(error)
    raise AssertionError("was not refused")


def main() -> None:
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("nccl")
    mine = torch.full((4,), float(rank + 1), device=f"cuda:{rank}")
    where = mine.device
    assert "Duplicate GPU" in refused(lambda: dist.new_group().allreduce([mine.to("cuda:0")]).wait())
    torch.cuda.set_device(rank)
    for op, wanted in ((dist.ReduceOp.SUM, 3.0), (dist.ReduceOp.AVG, 1.5), (dist.ReduceOp.MAX, 2.0)):
        said = mine.clone()
        dist.all_reduce(said, op=op)
        assert said.tolist() == [wanted] * 4, (op, said)
        assert said.device == where
        if op != dist.ReduceOp.MAX:
            part = torch.empty(2, device="cuda")
            dist.reduce_scatter_tensor(part, mine, op=op)
            assert part.tolist() == [wanted] * 2, (op, part)
    both = torch.empty(2, 4, device="cuda")
    dist.all_gather_into_tensor(both, mine)
    assert both.tolist() == [[1.0] * 4, [2.0] * 4]
    each = [torch.empty(4, device="cuda") for _ in range(2)]
    dist.all_gather(each, mine)
    assert torch.equal(torch.stack(each), both)
    words = [rank, "so"] if rank == 0 else [None, None]
    dist.broadcast_object_list(words, 0)
    assert words == [0, "so"]
    assert "device type cpu" in refused(lambda: dist.all_reduce(torch.ones(2)))
    assert "contiguous" in refused(lambda: dist.all_reduce(torch.ones(2, 3, device="cuda").t()))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
