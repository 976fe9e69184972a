"""Liger's Triton kernels on CPU tensors, by Triton's interpreter, which lacks two things that they use.

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
