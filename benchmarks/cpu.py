"""PPO on CPUs: this package against trl 1.12.0's PPOTrainer, the same work in paired, interleaved, fresh processes.

    make bench                                  # all of it; writes RESULTS.md and results.json beside this file
    python benchmarks/cpu.py --tiny --pairs 1   # does it run?
    python benchmarks/cpu.py --columns shared trl-full trl-onednn   # how much of it is the library that multiplies

A pair is one run of every column, one after the other, so that what else the machine does falls on all of them; every
second pair goes backwards. Each run warms up on a quarter of the prompts, then one iteration is timed. Ratios are taken
inside a pair; medians over pairs, with the least and the greatest.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from workers import (
    BY_ONEDNN,
    COLUMNS,
    HERE,
    OURS,
    PHASES,
    Record,
    check_same_work,
    imports_mib,
    provenance,
    provenance_lines,
    run,
    run_column,
)

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
SHAPES = {"vocabulary 4,096": LLAMA | {"vocab_size": 4096}, "vocabulary 32,000": LLAMA | {"vocab_size": 32000}}
ALL = COLUMNS | BY_ONEDNN
TINY = {"tiny": LLAMA | {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2}}
TINY_JOB = {"prompts": 8, "prompt_tokens": 8, "new_tokens": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--columns", nargs="+", choices=ALL, default=list(COLUMNS))
    parser.add_argument("--tiny", action="store_true", help="a model and prompts that take seconds")
    parser.add_argument("--raw", type=Path, help="a file for the raw numbers, which a whole run writes to results.json")
    options = parser.parse_args()
    started = time.monotonic()
    shapes = TINY if options.tiny else SHAPES
    with tempfile.TemporaryDirectory() as temporary:
        parameters = {}
        for number, (name, shape) in enumerate(shapes.items()):
            folder = Path(temporary) / str(number)
            parameters[name] = run("job.py", str(folder), json.dumps(shape))["parameters"]
        records: list[Record] = []
        for pair in range(options.pairs):
            columns = options.columns if pair % 2 == 0 else options.columns[::-1]
            for number, name in enumerate(shapes):
                job = {"folder": str(Path(temporary) / str(number)), **(TINY_JOB if options.tiny else {})}
                done = [{"column": c, "shape": name, "pair": pair, **run_column(c, job)} for c in columns]
                check_same_work([r for r in records if r["shape"] == name] + done)
                records += done
                times = ", ".join(f"{r['column']} {seconds(r):.2f} s" for r in done)
                print(f"[{time.monotonic() - started:4.0f} s] pair {pair + 1}, {name}: {times}", flush=True)
    raw = {"provenance": provenance(records), "parameters": parameters, "imports_mib": imports_mib(), "runs": records}
    text = report(raw, options.raw.name if options.raw else "results.json")
    print(text)
    if options.raw:
        options.raw.write_text(json.dumps(raw, indent=1) + "\n")
    elif not options.tiny and options.pairs >= 5 and options.columns == list(COLUMNS):  # anything less is only shown
        (HERE / "results.json").write_text(json.dumps(raw, indent=1) + "\n")
        (HERE / "RESULTS.md").write_text(text)


def seconds(record: Record) -> float:
    return float(sum(record["seconds"].values()))


def report(raw: Record, raw_name: str) -> str:
    lines = ["# PPO on CPUs, against TRL 1.12", "", *provenance_lines(raw["provenance"]), ""]
    if "tiny" in raw["parameters"]:
        lines += ["**A tiny model and short prompts, to show that the code runs. The numbers mean nothing.**", ""]
    ours, theirs = raw["imports_mib"]["ours"], raw["imports_mib"]["theirs"]
    lines += [
        "32 prompts of 32 tokens, 64 new tokens each, 2 PPO epochs of one mini-batch in 4 micro-batches, LoRA r 16 on "
        "all linear layers, float32, no gradient checkpointing, random weights. Checked to be equal on every column: "
        "tokens generated, optimizer steps, LoRA parameters of the policy. Seconds of one iteration, medians; "
        "FLOPs are counted on a quarter of the prompts, times four. Memory is the process's peak resident set; in "
        "brackets less what the imports take alone, "
        f"{ours:.0f} MiB for llm-rlhf and {theirs:.0f} MiB for TRL. Raw numbers: {raw_name}.",
        "",
    ]
    for shape, count in raw["parameters"].items():
        runs = [r for r in raw["runs"] if r["shape"] == shape]
        lines += [f"## {shape}: {count / 1e6:.1f}M parameters, {runs[-1]['pair'] + 1} pairs", ""]
        lines += [
            "| | s an iteration | generate | score | update | peak MiB | GFLOP |",
            "|---|---|---|---|---|---|---|",
        ]
        columns = [c for c in ALL if any(r["column"] == c for r in runs)]
        lines += [row(raw, [r for r in runs if r["column"] == c]) for c in columns]
        lines += [""]
        for theirs in (c for c in columns if c not in OURS):
            lines += [f"Against {ALL[theirs]}, median of pairs [least, greatest]:", ""]
            lines += ["| | times as fast | memory less imports | FLOPs |", "|---|---|---|---|"]
            lines += [comparison(raw, runs, ours, theirs) for ours in columns if ours in OURS]
            lines += [""]
    return "\n".join(lines)


def row(raw: Record, runs: list[Record]) -> str:
    phases = [statistics.median(r["seconds"][phase] for r in runs) for phase in PHASES]
    peak = statistics.median(r["peak_mib"] for r in runs)
    cells = [
        ALL[runs[0]["column"]],
        f"{statistics.median(map(seconds, runs)):.2f}",
        *(f"{s:.2f}" for s in phases),
        f"{peak:.0f} ({statistics.median(less_imports(raw, r) for r in runs):.0f})",
        f"{flops(runs[0]) / 1e9:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def comparison(raw: Record, runs: list[Record], ours: str, theirs: str) -> str:
    def ratios(measure: Callable[[Record], float]) -> str:
        found = []
        for pair in sorted({r["pair"] for r in runs}):
            one, other = (next(r for r in runs if (r["pair"], r["column"]) == (pair, c)) for c in (ours, theirs))
            found.append(measure(one) / measure(other))
        return f"{statistics.median(found):.2f} [{min(found):.2f}, {max(found):.2f}]"

    speed, memory = ratios(lambda r: 1 / seconds(r)), ratios(lambda r: less_imports(raw, r))
    return f"| {ALL[ours]} | {speed} | {memory} | {ratios(flops).split()[0]} |"


def less_imports(raw: Record, record: Record) -> float:
    return float(record["peak_mib"] - raw["imports_mib"]["ours" if record["column"] in OURS else "theirs"])


def flops(record: Record) -> float:
    return float(sum(record["flops"].values()))


if __name__ == "__main__":
    main()
