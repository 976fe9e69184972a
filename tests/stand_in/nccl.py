"""NCCL where there is none: `install()`, and torch's process groups of backend "nccl" work on the stand-in's devices.

Gloo carries what they say, on the CPU's tensors of the same memory. What NCCL refuses is refused: tensors of the
CPU, tensors that are not contiguous, two processes on one device. What it cannot show: speed, other machines, hangs.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future
from torch.distributed import distributed_c10d

CARRIED = (
    "allreduce", "allreduce_coalesced", "allgather", "allgather_coalesced", "_allgather_base", "broadcast", "reduce",
    "reduce_scatter", "_reduce_scatter_base", "gather", "scatter", "alltoall", "alltoall_base", "send", "recv",
)  # fmt: skip
SINGLE = {"all_gather_single": "_allgather_base", "reduce_scatter_single": "_reduce_scatter_base"}  # of torch 2.13
SEVERAL = {
    "all_gather_single_coalesced": "_allgather_base", "allgather_into_tensor_coalesced": "_allgather_base",
    "reduce_scatter_single_coalesced": "_reduce_scatter_base",
    "reduce_scatter_tensor_coalesced": "_reduce_scatter_base",
}  # fmt: skip


class Options:
    """Whatever torch says of a group."""

    _timeout = distributed_c10d.default_pg_timeout


class ProcessGroupNCCL(dist.ProcessGroup):
    Options = Options

    def __init__(self, store: Any, rank: int, size: int, options: Options) -> None:
        super().__init__(rank, size)
        self._store, self._device = dist.PrefixStore("devices", store), -1
        gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, timeout=options._timeout)
        self._gloo = gloo
        self._register_backend(torch.device("cuda"), dist.ProcessGroup.BackendType.NCCL, gloo)

    def getBackendName(self) -> str:  # noqa: N802 - torch's
        return "nccl"

    def _set_sequence_number_for_group(self) -> None: ...

    def barrier(self, opts: Any) -> Any:
        self._take(torch.zeros(1, device="cuda"))  # by which NCCL waits
        return self._gloo.barrier(opts)

    def _carry(self, name: str, arguments: tuple[Any, ...]) -> Any:
        averages = False
        for options in arguments:
            if getattr(options, "reduceOp", None) == dist.ReduceOp.AVG:  # which gloo has not
                averages, options.reduceOp = True, dist.ReduceOp.SUM
        arguments = tuple(self._on_cpu(argument) for argument in arguments)
        if name in SINGLE.values():  # of which NCCL takes any shape
            arguments = (arguments[0].view(-1), arguments[1].view(-1), *arguments[2:])
        work = getattr(self._gloo, name)(*arguments)
        if not averages:
            return work
        work.wait()
        means = [x.div_(self.size()) for x in (arguments[0] if isinstance(arguments[0], list) else arguments[:1])]
        done = torch.futures.Future()
        done.set_result(means)
        return _create_work_from_future(done)  # to wait for gloo's once more would write its sums again

    def _on_cpu(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self._take(value)
            return torch.ops.stand_in.on_cpu(value.detach())
        return [self._on_cpu(one) for one in value] if isinstance(value, (list, tuple)) else value

    def _take(self, x: torch.Tensor) -> None:
        """RuntimeError where NCCL would not."""
        if not x.is_cuda:
            raise RuntimeError(f"No backend type associated with device type {x.device.type}")
        if not x.is_contiguous():
            raise ValueError("Tensors must be contiguous")
        if x.get_device() == self._device:
            return
        if self._device >= 0:
            raise RuntimeError(f"NCCL: this process spoke from cuda:{self._device}, and now from {x.device}")
        self._device = x.get_device()
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")  # by which each process numbers them anew
        self._store.set(str(self.rank()), seen.split(",")[self._device] if seen else str(self._device))
        others = [self._store.get(str(rank)).decode() for rank in range(self.size())]
        if len(set(others)) < len(others):
            raise RuntimeError(f"NCCL: Duplicate GPU detected: the processes are on CUDA devices {others}")


def _one(name: str) -> Any:
    return lambda self, *arguments: self._carry(name, arguments)


def _each(name: str) -> Any:
    def carry(self: ProcessGroupNCCL, outputs: Any, inputs: Any, *options: Any) -> Any:
        works = [self._carry(name, (output, given, *options)) for output, given in zip(outputs, inputs, strict=True)]
        for work in works[:-1]:
            work.wait()
        return works[-1]

    return carry


for _name, _by in (dict(zip(CARRIED, CARRIED, strict=True)) | SINGLE).items():
    setattr(ProcessGroupNCCL, _name, _one(_by))
for _name, _by in SEVERAL.items():
    setattr(ProcessGroupNCCL, _name, _each(_by))


def install() -> None:
    torch.cuda.nccl.version = lambda: (0, 0, 0)  # of which torch's errors tell
    distributed_c10d._NCCL_AVAILABLE = True
    distributed_c10d.default_pg_nccl_timeout = distributed_c10d.default_pg_timeout
    distributed_c10d.ProcessGroupNCCL = dist.ProcessGroupNCCL = ProcessGroupNCCL
