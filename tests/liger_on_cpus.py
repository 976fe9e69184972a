"""Liger's Triton kernels on CPU tensors, by Triton's interpreter, which lacks three things that they use.

A kernel is made for the interpreter or for a GPU when its module is imported, and TRL imports some, too. So the whole
process must be told from its start: `TRITON_INTERPRET=1 python -m pytest -n 0 tests/parity/test_liger_kernels.py`.
"""

import importlib.util
import os
from typing import Any

import pytest


def interpret() -> None:
    """Let the kernels run on CPUs; where they cannot, skip the tests of the module that calls this."""
    for package in ("liger_kernel", "triton"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install liger-kernel triton)", allow_module_level=True)
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels run on CPUs with TRITON_INTERPRET=1 alone", allow_module_level=True)
    import triton.language as tl
    from triton.runtime import interpreter

    _numbers_as_tensors(tl, interpreter)
    _bfloat16_as_numbers(tl, interpreter)
    # Functions of CUDA's own library, which the interpreter answers with None.
    vars(importlib.import_module("liger_kernel.ops.rms_norm"))["rsqrt"] = lambda x: tl.rsqrt(x)
    vars(importlib.import_module("liger_kernel.ops.geglu"))["tanh"] = lambda x: 2 * tl.sigmoid(2 * x) - 1


def _numbers_as_tensors(tl: Any, interpreter: Any) -> None:
    """A kernel calls `.to` on a number that it is given, which is a tensor on a GPU alone (triton 3.9)."""
    import numpy as np

    convert = interpreter._implicit_cvt

    def with_numbers(value: Any) -> Any:
        if type(value) is float:
            return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
        return convert(value)

    interpreter._implicit_cvt = with_numbers


def _bfloat16_as_numbers(tl: Any, interpreter: Any) -> None:
    """The interpreter keeps bfloat16 as bits in integers, multiplies these (1 * 1 is 2) and cuts off (triton 3.9)."""
    import numpy as np
    import torch

    kind = interpreter.InterpreterBuilder
    by_bits, casting = kind.binary_op, kind.cast_impl

    def widened(data: Any) -> Any:
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).float().numpy()

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if not lhs.dtype.scalar == rhs.dtype.scalar == tl.bfloat16:
            return by_bits(self, lhs, rhs, op)
        wide = op(widened(lhs.data), widened(rhs.data))
        if wide.dtype == np.bool_:
            return interpreter.TensorHandle(wide, tl.int1)
        return rounded(wide)

    def rounded(wide: Any) -> Any:
        """To the nearest, as GPUs do."""
        bits = torch.from_numpy(np.ascontiguousarray(wide)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(bits, tl.bfloat16)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return rounded(src.data)
        return casting(self, src, dst_type)

    kind.binary_op, kind.cast_impl = binary_op, cast_impl
