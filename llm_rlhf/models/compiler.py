"""The compiler that torch.compile calls while it runs."""

import os
import shutil
import sys


def compiler(device: str) -> str | None:
    """Where there is one, as torch and Triton look for it: of C++ for CPUs' kernels, of C for GPUs'. None: nowhere."""
    return next((path for name in _names(device) if (path := shutil.which(name))), None)


def missing(device: str) -> str | None:
    """What to say where there is none."""
    if compiler(device) is not None:
        return None
    variable, names = _variable(device), _names(device)
    remedy = f"unset {variable}, or let it be one" if os.environ.get(variable) else f"install {names[0]}"
    return f"torch.compile takes a compiler, and there is no {' or '.join(names)} here: {remedy}"


def _variable(device: str) -> str:
    return "CXX" if device == "cpu" else "CC"


def _names(device: str) -> list[str]:
    """torch's rule for CPUs, Triton's for all else: what the variable says; where it says nothing, the usual ones."""
    if named := os.environ.get(_variable(device)):
        return [named]
    if device == "cpu":
        return ["clang++"] if sys.platform == "darwin" else ["g++"]
    return ["gcc", "clang"]
