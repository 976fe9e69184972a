"""The compiler that torch.compile calls while it runs."""

import os
import shutil

NAMES = {"cpu": ("CXX", "c++", "g++", "clang++"), "cuda": ("CC", "cc", "gcc", "clang")}  # a variable first
PACKAGES = {"cpu": "g++", "cuda": "gcc"}


def compiler(device: str) -> str | None:
    """Where there is one: of C++ for CPUs' kernels, of C for what starts Triton's. None: nowhere."""
    variable, *names = NAMES.get(device, NAMES["cuda"])
    return next((path for name in (os.environ.get(variable, ""), *names) if (path := shutil.which(name))), None)


def missing(device: str) -> str | None:
    """What to say where there is none."""
    if compiler(device) is not None:
        return None
    package = PACKAGES.get(device, PACKAGES["cuda"])
    return f"torch.compile takes a compiler, and there is none here: install {package}"
