"""PPO on one CUDA device, in the shapes of Qwen2.5 0.5B, 1.5B and 7B with random weights: nothing is downloaded.

    python benchmarks/gpu.py                    # within 14 minutes; writes GPU.md and gpu.json beside this file
    python benchmarks/gpu.py --minutes 60       # further down the list
    python benchmarks/gpu.py --only 0.5B/bf16/shared 0.5B/bf16/trl-full
    python benchmarks/gpu.py --set num_mini_batches=2               # our rows with other settings of PPOConfig
    python benchmarks/gpu.py --tiny             # the same code on a CPU: does it run? --tiny cuda: on a GPU

128 prompts of 256 tokens, 256 new tokens each, 2 PPO epochs, micro-batches of 16; in bfloat16 and on an NF4 base. The
rows are measured in the order of `PLAN`, the most telling first, each in a fresh process with a time-out, until the
minutes are up. Each is written down as soon as it is there. A training process makes one whole iteration, in which what
is compiled compiles and whose operations are counted, and then two timed ones; our trainer is told that they are the
first of a run of 100 rollouts, as what it does by default may depend on that. What fails or is cut short is reported
in its row and does not stop the rest.

TRL 1.12 is run by the interpreter $TRL112_PYTHON, or by this one with the folder $TRL112_PATH before its path
(`pip install --no-deps --target FOLDER trl==1.12.0` makes one), or in benchmarks/.trl112, which is made by pip.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import yaml
from workers import (
    COLUMNS,
    HERE,
    ON_GPUS,
    PHASES,
    THEIRS,
    Record,
    check_same_work,
    provenance,
    provenance_lines,
    run,
    run_column,
)

TRAINING = COLUMNS | ON_GPUS


def qwen(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> Record:
    """Qwen2.5's configuration as its release states it."""
    return {
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "tie_word_embeddings": tied, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    }  # fmt: skip


SHAPES = {
    "0.5B": qwen(896, 4864, 24, 14, 2, 151936, tied=True),
    "1.5B": qwen(1536, 8960, 28, 12, 2, 151936, tied=True),
    "7B": qwen(3584, 18944, 28, 28, 4, 152064, tied=False),
}
TINY = qwen(64, 128, 2, 4, 2, 512, tied=True)
JOB = {"device": "cuda", "prompts": 128, "prompt_tokens": 256, "new_tokens": 256, "micro_batches": 8, "iterations": 2}
TINY_JOB = {"prompts": 8, "prompt_tokens": 8, "new_tokens": 8, "micro_batches": 4, "iterations": 2}
BASES = {"bf16": {"dtype": "bfloat16"}, "NF4": {"dtype": "bfloat16", "quantization": "nf4"}}
DECODING = {
    "eager": "eager, growing cache",
    "static": "static cache, compiled, CUDA graphs",
    "merged": "the same, adapter merged into the base",
    "continuous": "continuous batching",
}
PLAN = [
    f"{shape}/{base}/{column}"
    for shape, base, columns in (
        ("0.5B", "bf16", "shared trl-full compiled static merged eager"),
        ("0.5B", "NF4", "shared"),
        ("7B", "NF4", "shared"),
        ("7B", "bf16", "shared"),
        ("0.5B", "bf16", "adapter rollout liger trl-lora"),
        ("7B", "bf16", "liger static merged"),
        ("0.5B", "NF4", "trl-full static eager"),
        ("1.5B", "bf16", "shared trl-full static merged eager"),
        ("7B", "bf16", "trl-lora"),
        ("0.5B", "bf16", "continuous"),
        ("1.5B", "NF4", "shared"),
    )
    for column in columns.split()
]
FLOPS, BYTES = 790e12, 4.8e12  # of an H200, a second: dense bfloat16, memory
LONGEST = 0.35  # of the minutes, for one row: what hangs must not take all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=14, help="when to stop, wherever it is then (default 14)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"rows, in this order; all: {', '.join(PLAN)}")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of PPOConfig, for our rows")
    parser.add_argument("--tiny", nargs="?", const="cpu", choices=("cpu", "cuda"), metavar="DEVICE",
                        help="a tiny model, on the CPU unless said; writes nothing unless --out says")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for GPU.md and gpu.json (default: this file's)")
    options = parser.parse_args()
    plan = options.only or PLAN
    if wrong := [row for row in plan if not known(row)]:
        parser.error(f"no such row: {', '.join(wrong)}; a row is SHAPE/BASE/COLUMN, such as {PLAN[0]}")
    settings = {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in options.set)}
    out = options.out or (None if options.tiny else HERE)
    end, records = time.monotonic() + 60 * options.minutes, []
    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(plan):
            left = end - time.monotonic()
            if left < 10:
                break
            records.append(
                measured(row, Path(folder), settings, options.tiny, min(left, LONGEST * 60 * options.minutes))
            )
            print(f"[{60 * options.minutes - (end - time.monotonic()):4.0f} s] {brief(records[-1])}", flush=True)
            raw = {"provenance": provenance(records), "settings": settings, "runs": records, "left": plan[number + 1 :]}
            if out:
                (out / "gpu.json").write_text(json.dumps(raw, indent=1) + "\n")
                (out / "GPU.md").write_text(report(raw, options.tiny))
    if records:
        print(report(raw, options.tiny))


def known(row: str) -> bool:
    parts = row.split("/")
    return len(parts) == 3 and parts[0] in SHAPES and parts[1] in BASES and parts[2] in TRAINING | DECODING


def measured(row: str, folder: Path, settings: Record, tiny: str | None, seconds: float) -> Record:
    """One row's record; where it fails, with the reason."""
    shape, base, column = row.split("/")
    started = time.monotonic()
    here = folder / shape
    job = {"folder": str(here), **(TINY_JOB | {"device": tiny} if tiny else JOB), **BASES[base]}
    try:
        if not here.exists():
            run("job.py", str(here), json.dumps(TINY if tiny else SHAPES[shape]), seconds=seconds)
            seconds -= time.monotonic() - started
        if column in DECODING:
            found = run("decode.py", json.dumps({"column": column, **job}), seconds=seconds)
        else:
            found = run_column(column, job | ({} if column in THEIRS else {"settings": settings}), seconds)
    except (RuntimeError, OSError) as error:
        found = {"failed": next((line for line in reversed(str(error).splitlines()) if line.strip()), repr(error))}
    return {"shape": shape, "base": base, "column": column, "took": time.monotonic() - started, **found}


def brief(record: Record) -> str:
    name = "/".join(record[key] for key in ("shape", "base", "column"))
    if "failed" in record:
        return f"{name} failed: {record['failed']}"
    if "ms_per_step" in record:
        return f"{name} {record['ms_per_step']:.2f} ms a step"
    done = "one iteration only"
    if "seconds" in record:
        done = " ".join(f"{phase} {record['seconds'][phase]:.2f}" for phase in PHASES)
    first = f"(first: {sum(record['first'].values()):.1f})"
    return f"{name} {done} {first}{', cut' if 'cut' in record else ''}"


# ---- the page ------------------------------------------------------------------------------------------------------


def report(raw: Record, tiny: str | None) -> str:
    job = TINY_JOB if tiny else JOB
    lines = ["# PPO on one GPU", "", *provenance_lines(raw["provenance"])]
    if raw["settings"]:
        lines += ["- our rows with " + ", ".join(f"`{name}: {value}`" for name, value in raw["settings"].items())]
    if tiny:
        lines += ["", "**A tiny model, to show that the code runs. The numbers mean nothing.**"]
    rows, prompt, new = job["prompts"] // job["micro_batches"], job["prompt_tokens"], job["new_tokens"]
    lines += [
        "",
        f"{job['prompts']} prompts of {prompt} tokens, {new} new tokens each, 2 PPO epochs, micro-batches of {rows}, "
        "LoRA r 16 on all linear layers, no gradient checkpointing, random weights. Checked to be equal on all "
        "rows: tokens generated, optimizer steps, LoRA parameters of the policy. Seconds are means of the two "
        "iterations after the first (least and greatest of their sums in brackets); the first iteration, in which what "
        "is compiled compiles and operations are counted, stands apart. Peak memory as torch counts it on the "
        "device, all iterations. "
        f"Operations are those below autograd, views left out, for each {rows} x {prompt + new} tokens: of scoring and "
        "of the update of one epoch; in brackets, how many of them copy or cast; those of compiled layers cannot be "
        "watched. The floor is arithmetic for an H200 "
        f"({FLOPS / 1e12:.0f} TFLOP/s, {BYTES / 1e12:.1f} TB/s), weights in bfloat16, value head on the policy. Raw "
        "numbers: gpu.json.",
        "",
    ]
    for shape, base in dict.fromkeys((r["shape"], r["base"]) for r in raw["runs"]):
        runs = [r for r in raw["runs"] if (r["shape"], r["base"]) == (shape, base)]
        lines += [f"## {shape}, {base}", ""]
        if training := [r for r in runs if r["column"] in TRAINING]:
            lines += ["| | s an iteration | generate | score | update | first, s | new tokens/s | peak GiB | "
                      "operations: score | update |", "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
            lines += [*(training_row(r, job) for r in training), *([] if tiny else [floor_row(SHAPES[shape], job)]), ""]
        if decoding := [r for r in runs if r["column"] in DECODING]:
            lines += ["| decoding, one step of all prompts | ms | first run, s | peak GiB |", "|---|---|---|---|"]
            lines += [*(decoding_row(r) for r in decoding), ""]
        try:
            check_same_work(training)
        except RuntimeError as error:
            lines += [f"**{error}**", ""]
    if raw["left"]:
        lines += ["## Not run", "", "The time was up before: " + ", ".join(raw["left"]) + ".", ""]
    return "\n".join(lines)


def training_row(record: Record, job: Record) -> str:
    name = TRAINING[record["column"]] + (f" (cut {record['cut']})" if "cut" in record else "")
    if "failed" in record:
        return f"| {name} | failed: {record['failed'].replace('|', ' ')} | | | | | | | | |"
    counted = {phase: record["operations"].get(phase) for phase in ("score", "update")}
    shares = {"score": job["micro_batches"], "update": 2 * job["micro_batches"]}
    operations = " | ".join(
        f"{of['all'] / shares[phase]:,.0f} ({of['moves'] / shares[phase]:,.0f})" if of else ""
        for phase, of in counted.items()
    )
    first = f"{sum(record['first'].values()):.1f}"
    if "seconds" not in record:
        return f"| {name} | | | | | {first} | | {record['peak_mib'] / 1024:.1f} | {operations} |"
    seconds = [record["seconds"][phase] for phase in PHASES]
    sums = sorted(sum(one.values()) for one in record["timed"])
    cells = [
        f"{sum(seconds):.2f} [{sums[0]:.2f}, {sums[-1]:.2f}]", *(f"{s:.2f}" for s in seconds), first,
        f"{job['prompts'] * job['new_tokens'] / sum(seconds):,.0f}", f"{record['peak_mib'] / 1024:.1f}", operations,
    ]  # fmt: skip
    return f"| {name} | {' | '.join(cells)} |"


def decoding_row(record: Record) -> str:
    name = DECODING[record["column"]]
    if "failed" in record:
        return f"| {name} | failed: {record['failed'].replace('|', ' ')} | | |"
    if "flash_attention" in record:
        name += " with flash attention" if record["flash_attention"] else " without flash attention"
    cells = f"{record['ms_per_step']:.2f} | {record['first_seconds']:.1f} | {record['peak_mib'] / 1024:.1f}"
    return f"| {name} | {cells} |"


def floor_row(shape: Record, job: Record) -> str:
    seconds = floor(shape, job)
    numbers = " | ".join(f"{seconds[phase]:.2f}" for phase in PHASES)
    return f"| floor | {sum(seconds.values()):.2f} | {numbers} | | | | | |"


def floor(shape: Record, job: Record) -> dict[str, float]:
    """Seconds of each phase if nothing but products of the base's matrices and reads of memory took time.

    Scoring is three forwards (policy with value head, reference, reward model), the update a forward and a backward
    to the activations in each of two epochs; the LM head sees responses only, and not the reward model's. A decoding
    step reads all weights and the cache so far; the prompts are one forward before it.
    """
    hidden, layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"]
    of_cache = 2 * hidden // heads * shape["num_key_value_heads"]  # keys and values, a layer and token
    body = layers * (2 * hidden * hidden + hidden * of_cache + 3 * hidden * shape["intermediate_size"])
    head = hidden * shape["vocab_size"]
    prompts, prompt, new = job["prompts"], job["prompt_tokens"], job["new_tokens"]
    rollout = 2 * body * prompts * (prompt + new) / FLOPS
    logits = 2 * head * prompts * new / FLOPS
    cache = 2 * layers * of_cache * prompts * (prompt + new / 2)  # bytes, in the middle of the response
    step = max((2 * (body + head) + cache) / BYTES, 2 * (body + head) * prompts / FLOPS)
    return {
        "generate": 2 * body * prompts * prompt / FLOPS + new * step,
        "score": 3 * rollout + 2 * logits,
        "update": 2 * 2 * (rollout + logits),
    }


if __name__ == "__main__":
    main()
