"""Starts the measured processes, in the environment that each side needs, and gathers what they report.

Imports nothing outside the standard library: a child process inherits its parent's peak memory on Linux.
"""

import contextlib
import datetime
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS = {
    "shared": "llm-rlhf, value: shared",
    "rollout": "llm-rlhf, value: shared, old_logprobs: rollout",
    "adapter": "llm-rlhf, value: adapter",
}
THEIRS = {
    "trl-full": "TRL 1.12, value model fully fine-tuned (its default)",
    "trl-lora": "TRL 1.12, LoRA on its value model",
}
COLUMNS = OURS | THEIRS
BY_ONEDNN = {"trl-onednn": "TRL 1.12 by default, its linear layers multiplying as ours do"}  # on AMD's CPUs
ON_GPUS = {  # of ours too: what CPUs gain little by, or cannot do
    "compiled": "llm-rlhf, value: shared, layers compiled (model.compile)",
    "liger": "llm-rlhf, value: shared, Liger's kernels",
}
PHASES = ("generate", "score", "update")

Record = dict[str, Any]


def trl112_environment() -> tuple[str, list[str]]:
    """The interpreter that has trl 1.12.0, and the folders to put before its PYTHONPATH.

    $TRL112_PATH is a folder that holds the package trl, beside whatever else this interpreter (or $TRL112_PYTHON's)
    has; $TRL112_PYTHON alone is an interpreter that has it. Neither: benchmarks/.trl112, which is made if need be.
    """
    python, folder = os.environ.get("TRL112_PYTHON"), os.environ.get("TRL112_PATH")
    if folder:
        if not (Path(folder) / "trl").is_dir():
            raise RuntimeError(f"TRL112_PATH is {folder!r}, which holds no folder trl; see benchmarks/gpu.py --help.")
        return python or sys.executable, [str(Path(folder).resolve())]
    return python or installed_trl112(), []


def installed_trl112() -> str:
    folder = HERE / ".trl112"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print("Installing trl 1.12.0 in benchmarks/.trl112 ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pins = (HERE.parent / "constraints.txt").read_text().splitlines()
        (folder / "pins.txt").write_text("\n".join(pin for pin in pins if not pin.startswith("trl==")))
        packages = ["trl==1.12.0", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes"]
        pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(folder / "pins.txt"), *packages]
        try:
            subprocess.run(pip, check=True)
        except subprocess.CalledProcessError as error:
            raise RuntimeError("trl 1.12.0 could not be installed; set TRL112_PYTHON or TRL112_PATH.") from error
        ready.touch()
    return str(python)


def run(script: str, *arguments: str, theirs: bool = False, seconds: float | None = None) -> Record:
    """What one fresh process reports: the JSON of its last line. RuntimeError with its last words where it fails.

    After `seconds` it is killed with all that it started; what it had reported by then is the record, with `cut`.
    """
    python, folders = trl112_environment() if theirs else (sys.executable, [])
    paths = [*folders, str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }  # fmt: skip
    command = [python, str(HERE / script), *arguments]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=errors, start_new_session=True)
        try:
            process.wait(seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise  # Ctrl-C ends the child too
        said.seek(0)
        errors.seek(0)
        record, cut = last_record(said.read()), process.returncode == -signal.SIGKILL and seconds is not None
        if record is not None and (cut or process.returncode == 0):
            return {**record, "cut": f"after {seconds:.0f} s"} if cut else record
        words = "\n".join(errors.read().strip().splitlines()[-20:])
    why = f"nothing was measured within {seconds:.0f} s" if cut else f"status {process.returncode}:\n{words}"
    raise RuntimeError(f"{shlex.join(command)} failed: {why}")


def last_record(said: str) -> Record | None:
    """The last line that is a JSON object."""
    for line in reversed(said.splitlines()):
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return None


def run_column(column: str, job: dict[str, Any], seconds: float | None = None) -> Record:
    """One column's process."""
    theirs = column in THEIRS | BY_ONEDNN
    argument = json.dumps({"column": column, **job})
    return run("trl112.py" if theirs else "ours.py", argument, theirs=theirs, seconds=seconds)


def imports_mib() -> dict[str, float]:
    """Peak memory of a process of each side that only imports what it needs."""
    return {
        "ours": run("ours.py", "imports")["peak_mib"],
        "theirs": run("trl112.py", "imports", theirs=True)["peak_mib"],
    }


def check_same_work(records: list[Record]) -> dict[str, int]:
    """The work that all records share. RuntimeError where two of them differ.

    Tokens may differ by 3 %: this package samples the end of a reply where it comes up, about once in as many tokens
    as the vocabulary has.
    """
    done = [r for r in records if "work" in r]
    for record in done:
        first, work = done[0]["work"], record["work"]
        tokens = first["tokens_generated"], work["tokens_generated"]
        if {**first, "tokens_generated": 0} != {**work, "tokens_generated": 0} or min(tokens) < 0.97 * max(tokens):
            raise RuntimeError(
                f"The columns did different work, so that their times say nothing: {record['column']} did "
                f"{work}, but {done[0]['column']} did {first}."
            )
    work: dict[str, int] = done[0]["work"] if done else {}
    return work


def provenance(records: list[Record]) -> Record:
    """Machine, versions, command and date of a set of records."""
    cpu = "unknown CPU"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = "unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no clone
        asked = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    versions = {side: next((r["versions"] for r in records if r["column"] in columns and "versions" in r), None)
                for side, columns in (("ours", OURS), ("theirs", THEIRS))}  # fmt: skip
    threads, accelerators = ({str(r[key]) for r in records if r.get(key)} for key in ("threads", "accelerator"))
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
        "machine": f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "accelerator": ", ".join(sorted(accelerators)) or None,
        "threads": ", ".join(sorted(threads)),
        "python": platform.python_version(),
        "versions": versions,
    }


def provenance_lines(facts: Record) -> list[str]:
    """The same for a reader."""
    lines = [f"- {facts['date']}, commit {facts['commit']}: `{facts['command']}`"]
    accelerator = f", {facts['accelerator']}" if facts["accelerator"] else ""
    lines.append(f"- {facts['machine']}{accelerator}; {facts['threads']} threads; Python {facts['python']}")
    for side, name in (("ours", "llm-rlhf on"), ("theirs", "TRL 1.12 on")):
        if facts["versions"][side]:
            lines.append(f"- {name} " + ", ".join(f"{k} {v}" for k, v in facts["versions"][side].items()))
    return lines
