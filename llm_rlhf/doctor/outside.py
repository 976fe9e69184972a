"""What a run reaches beyond this process: the hub, the configuration of accelerate, and a step of PPO by itself."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from llm_rlhf.doctor.findings import Finding

SECONDS = 5  # for the hub to answer
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}


def hub() -> Finding:
    """Whether the hub answers, and whether somebody is logged in; what is asked for is one model's name."""
    from huggingface_hub import HfApi, constants, get_token

    token = "a token is there" if get_token() else "nobody is logged in (gated models and --push want: hf auth login)"
    if constants.HF_HUB_OFFLINE:
        remedy = "Models and data come from folders and from its cache alone; unset HF_HUB_OFFLINE to fetch others."
        return Finding("hub", "note", f"not asked: offline by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE; {token}", remedy)
    try:
        HfApi().model_info("openai-community/gpt2", timeout=SECONDS)
    except Exception as error:  # of the HTTP library, of proxies, of certificates
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
        remedy = "Name folders and files, or mend the connection; HF_HUB_OFFLINE=1 spares the waiting."
        return Finding("hub", "note", f"{constants.ENDPOINT} does not answer: {said}", remedy)
    return Finding("hub", "good", f"{constants.ENDPOINT} answers; {token}")


def launching() -> Finding:
    """What `accelerate launch` would do without options."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        return Finding(
            "accelerate", "good", "no configuration; accelerate launch takes its defaults, one process a GPU"
        )
    config = load_config_from_file(default_config_file)
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    told = f"{default_config_file}: {config.num_processes} processes, {kind}"
    import torch

    gpus = torch.cuda.device_count()
    if kind in ("MULTI_GPU", "FSDP", "DEEPSPEED") and not config.use_cpu and config.num_processes > max(gpus, 1):
        return Finding("accelerate", "note", f"{told}, and here {gpus} GPUs", "Make it anew: accelerate config.")
    return Finding("accelerate", "good", told)


def start_smoke() -> "subprocess.Popen[str]":
    """Start a step of PPO in a process of its own, which runs while the other things are looked at."""
    return subprocess.Popen(
        [sys.executable, "-m", "llm_rlhf.doctor.smoke"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, errors="replace",
        env=os.environ | QUIET,
    )  # fmt: skip


def smoke(process: "subprocess.Popen[str]", seconds: float) -> Finding:
    """What came of it: a finite loss, and a first ratio of exactly 1.

    Args:
        seconds: to wait for it at most; it is ended then.
    """
    try:
        out, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        remedy = "The machine is busy or slow, or the accelerator hangs: python -m llm_rlhf.doctor.smoke shows where."
        return Finding("a step of PPO", "note", "not done in time", remedy)
    found = _last_json(out)
    if process.returncode or found is None:
        last = ([line for line in said.splitlines() if line.strip()] or [f"exit code {process.returncode}"])[-1]
        return Finding("a step of PPO", "broken", last[:200], "python -m llm_rlhf.doctor.smoke shows all of it.")
    if not math.isfinite(found["loss"]) or found["ratio"] != 1:
        told = f"loss {found['loss']}, first ratio {found['ratio']} on {found['device']}"
        return Finding(
            "a step of PPO", "broken", told, "The loss must be finite, the ratio 1: this device miscomputes."
        )
    return Finding("a step of PPO", "good", f"finite loss and first ratio 1 on {found['device']}")


def _last_json(text: str) -> dict[str, Any] | None:
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
