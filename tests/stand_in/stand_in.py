"""CUDA devices where there are none, for tests: `stand_in.install()` before torch is imported.

What runs on them takes the paths that a GPU's run takes, by the CPU's kernels (device.cpp): where tensors of both
meet, or of two devices, as they may not on GPUs, it raises; it tells where the CPU would wait for the device. What
it cannot show: speed, CUDA's own kernels and their rounding, Triton's, recorded graphs (torch.compile stops at what
dynamo traces), the memory that an allocator keeps, streams. bitsandbytes computes by its kernels for CPUs. A
device's default generator is one of its own; others, of whatever device, are the CPU's. Like GPUs they are hidden by an
empty CUDA_VISIBLE_DEVICES. There is one, or as many as $STAND_IN_DEVICES says; between processes
nccl.py stands in for NCCL.

It takes Linux, g++ and a torch that is built for CPUs alone.
"""

import atexit
import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import traceback
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILT = HERE.parents[1] / "build" / "stand-in"
MEMORY = 8 << 30  # bytes that a device has
DEVICES, MOST = "STAND_IN_DEVICES", 8  # of the environment; as in device.cpp
TOLD = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_device: Any = None  # the library, once it is loaded
_callbacks: list[Any] = []  # of `waits`, the innermost last


def missing() -> str | None:
    """Why there can be none here; None: there can, and its library is built."""
    if sys.platform != "linux":
        return "it is made for Linux"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    if next((_torch() / "lib").glob("libtorch_cuda*"), None) or next((_torch() / "lib").glob("libtorch_hip*"), None):
        return "this torch is built for GPUs"
    try:
        _library()
    except subprocess.CalledProcessError as error:
        return f"g++ cannot compile it: {error.stderr.strip()[-500:]}"
    except OSError as error:
        return f"it cannot be built: {error}"
    return None


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _library() -> Path:
    """device.cpp for the installed torch, compiled where that has not been done."""
    source, torch = HERE / "device.cpp", _torch()
    command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", f"-I{torch / 'include'}", str(source)]
    linked = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    made_of = [source.read_text(encoding="utf-8"), importlib.metadata.version("torch"), *command, *linked]
    library = BUILT / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        own = library.with_suffix(f".{os.getpid()}")  # several processes may make it at once
        subprocess.run([*command, "-o", str(own), *linked], check=True, capture_output=True, text=True)
        own.replace(library)
    return library


class _Always:
    """Of a stream, an event, or what switches to one: it is as it should be."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "_Always":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: True if name == "query" else 0.0 if name == "elapsed_time" else None


def _nothing(*_: Any, **__: Any) -> None: ...


def install() -> None:
    """Make torch say that there are devices, as far as this package and what it stands on ask."""
    global _device
    if _device is not None:
        return
    assert "torch" not in sys.modules, "torch has looked for devices already"
    _device = ctypes.CDLL(str(_library()), mode=ctypes.RTLD_GLOBAL)
    for name in ("held_bytes", "most_bytes"):  # those of other functions are of C's int
        getattr(_device, name).restype = ctypes.c_int64
    _device.set_room.argtypes = [ctypes.c_int64]

    import bitsandbytes  # noqa: F401 - before torch says that it has CUDA: its kernels for that are not in such a build
    import torch

    count = int(os.environ.get(DEVICES, "1"))
    assert 1 <= count <= MOST, f"{DEVICES} is {count}; it is 1 to {MOST}"
    _device.install(count)
    _device.set_room(MEMORY)
    _say_so(torch, count)
    # Let the thread that went backward end its last work: one that asks for Python while this ends would abort.
    atexit.register(time.sleep, 0.1)


def _say_so(torch: Any, count: int) -> None:
    properties = types.SimpleNamespace(
        name="stand-in", total_memory=MEMORY, major=9, minor=0, multi_processor_count=1, warp_size=32
    )
    said = {
        "is_initialized": True, "get_device_name": "stand-in", "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True, "memory_stats": {},
    }  # fmt: skip
    for name, value in said.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    for name in ("init", "_lazy_init", "empty_cache", "ipc_collect", "synchronize"):
        setattr(torch.cuda, name, _nothing)
    torch.accelerator.empty_cache = lambda: None  # a function of its own, too (see below)
    torch.accelerator.synchronize = lambda *_: None

    def which(device: Any = None) -> int:
        index = device if device is None or isinstance(device, int) else torch.device(device).index
        return _device.current_device() if index is None else index

    def exchange(to: int) -> int:
        before = _device.current_device()
        if to >= 0:
            if to >= _device.seen_devices():
                raise RuntimeError("CUDA error: invalid device ordinal")
            _device.set_device(to)
        return before

    for name in ("memory_allocated", "memory_reserved"):
        setattr(torch.cuda, name, lambda device=None: _device.held_bytes(which(device)))
    for name in ("max_memory_allocated", "max_memory_reserved"):
        setattr(torch.cuda, name, lambda device=None: _device.most_bytes(which(device)))
    for name in ("Stream", "Event", "stream", "current_stream", "default_stream"):
        setattr(torch.cuda, name, _Always)
    torch.cuda.is_available = lambda: _device.seen_devices() > 0
    torch.cuda.device_count = torch.cuda.random.device_count = lambda: _device.seen_devices()
    torch.cuda.current_device = lambda: _device.current_device()
    torch.cuda.set_device = lambda device: (exchange(which(device)), None)[1]
    torch.cuda.mem_get_info = lambda device=None: (MEMORY - _device.held_bytes(which(device)), MEMORY)
    torch.cuda.reset_peak_memory_stats = lambda device=None: _device.forget_most(which(device))
    torch.cuda.default_generators = tuple(torch.Generator().manual_seed(0) for _ in range(count))
    for index, draws in enumerate(torch.cuda.default_generators):
        torch.ops.stand_in.draw_by(draws, index)
    torch._C._cuda_getDevice = lambda: _device.current_device()
    torch._C._cuda_setDevice = lambda index: (exchange(index), None)[1]
    torch._C._cuda_exchangeDevice = lambda to: exchange(to)
    torch._C._cuda_maybeExchangeDevice = lambda to: exchange(to)
    torch.cuda._exchange_device = exchange  # each a function of its own, as dynamo knows them by what they are
    torch.cuda._maybe_exchange_device = lambda to: exchange(to)
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    _make_storages(torch)
    if torch.distributed.is_available():
        import nccl

        nccl.install()

    compile_by = torch.compile

    def compile_without_kernels(*args: Any, backend: Any = None, mode: Any = None, **options: Any) -> Any:
        return compile_by(*args, backend="eager" if backend in (None, "inductor") else backend, **options)

    torch.compile = compile_without_kernels


def _make_storages(torch: Any) -> None:
    """By themselves they cannot be made on a device in such a build: those of tensors are taken."""
    from torch.storage import UntypedStorage

    def bytes_of(storage: Any) -> Any:
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def to(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        return bytes_of(self).to(device, non_blocking=non_blocking).untyped_storage()

    resize = UntypedStorage.resize_

    def resize_(self: Any, size: int) -> Any:
        if self.device.type != "cuda":
            return resize(self, size)
        torch.ops.stand_in.resize_storage(bytes_of(self), size)
        return self

    UntypedStorage.to, UntypedStorage.resize_ = to, resize_
    UntypedStorage.clone = lambda self: bytes_of(self).clone().untyped_storage()  # by which copy.deepcopy goes


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """The device has so many bytes until the block ends; what needs more fails as on a GPU."""
    _device.set_room(size)
    try:
        yield
    finally:
        _device.set_room(MEMORY)


@contextlib.contextmanager
def waits() -> Iterator[Counter[str]]:
    """Where the CPU waits for the device until the block ends, each with the last line of Python that it comes of."""
    found: Counter[str] = Counter()

    def note(what: bytes) -> None:
        called = traceback.extract_stack()[:-1]  # behind this function; none in the thread that goes backward
        where = f"{'/'.join(Path(called[-1].filename).parts[-2:])}:{called[-1].lineno}" if called else "backward"
        found[f"{what.decode()}, {where}"] += 1

    callback = TOLD(note)
    _callbacks.append(callback)
    _device.tell(callback)
    try:
        yield found
    finally:
        _callbacks.remove(callback)
        _device.tell(_callbacks[-1] if _callbacks else TOLD())
