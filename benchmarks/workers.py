"""Starts the measured processes, in the environment that each side needs, and gathers what they report.

Imports nothing outside the standard library: a child process inherits its parent's peak memory on Linux.
"""

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
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
PHASES = ("generate", "score", "update")

Record = dict[str, Any]


def trl112_python() -> str:
    """The interpreter that has trl 1.12.0: $TRL112_PYTHON, or that of benchmarks/.trl112, which is made if need be."""
    if "TRL112_PYTHON" in os.environ:
        return os.environ["TRL112_PYTHON"]
    folder = HERE / ".trl112"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print("Installing trl 1.12.0 in benchmarks/.trl112 ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pins = (HERE.parent / "constraints.txt").read_text().splitlines()
        (folder / "pins.txt").write_text("\n".join(pin for pin in pins if not pin.startswith("trl==")))
        packages = ["trl==1.12.0", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes"]
        pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(folder / "pins.txt"), *packages]
        subprocess.run(pip, check=True)
        ready.touch()
    return str(python)


def run(script: str, *arguments: str, theirs: bool = False) -> Record:
    """What one fresh process reports: the JSON of its last line. RuntimeError with its last words where it fails."""
    python = trl112_python() if theirs else sys.executable
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    command = [python, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        words = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise RuntimeError(f"{shlex.join(command)} failed with status {done.returncode}:\n{words}")
    record: Record = json.loads(done.stdout.strip().splitlines()[-1])
    return record


def run_column(column: str, job: dict[str, Any]) -> Record:
    """One measured iteration of one column."""
    theirs = column in THEIRS
    argument = json.dumps({"column": column, **job})
    return run("trl112.py" if theirs else "ours.py", argument, theirs=theirs)


def imports_mib() -> dict[str, float]:
    """Peak memory of a process of each side that only imports what it needs."""
    return {
        "ours": run("ours.py", "imports")["peak_mib"],
        "theirs": run("trl112.py", "imports", theirs=True)["peak_mib"],
    }


def check_same_work(records: list[Record]) -> dict[str, int]:
    """The work that all records share. RuntimeError where two of them differ."""
    done = [r for r in records if "failed" not in r]
    for record in done:
        if record["work"] != done[0]["work"]:
            raise RuntimeError(
                f"The columns did different work, so that their times say nothing: {record['column']} did "
                f"{record['work']}, but {done[0]['column']} did {done[0]['work']}."
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
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    versions = {side: next((r["versions"] for r in records if r["column"] in columns and "versions" in r), None)
                for side, columns in (("ours", OURS), ("theirs", THEIRS))}  # fmt: skip
    threads, accelerators = ({str(r[key]) for r in records if r.get(key)} for key in ("threads", "accelerator"))
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit.stdout.strip(),
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
