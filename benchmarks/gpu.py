"""PPO on one CUDA device, in the shapes of Qwen2.5 0.5B, 1.5B and 7B with random weights: nothing is downloaded.

    python benchmarks/gpu.py                    # all of it; writes GPU.md and gpu.json beside this file
    python benchmarks/gpu.py --shapes 0.5B
    python benchmarks/gpu.py --tiny             # the same code on a CPU: does it run?

128 prompts of 256 tokens, 256 new tokens each, 2 PPO epochs, micro-batches of 16; in bfloat16 and on an NF4 base. Each
column is one fresh process, which warms up on one micro-batch and is timed on one iteration. What fails is reported in
its cell and does not stop the rest. TRL 1.12 is run where its environment exists or can be installed (workers.py).
"""

import argparse
import json
import tempfile

from workers import COLUMNS, HERE, PHASES, Record, check_same_work, provenance, provenance_lines, run, run_column


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
TINY = {"tiny": qwen(64, 128, 2, 4, 2, 512, tied=True)}
JOB = {"device": "cuda", "prompts": 128, "prompt_tokens": 256, "new_tokens": 256, "micro_batches": 8}
TINY_JOB = {"device": "cpu", "prompts": 8, "prompt_tokens": 8, "new_tokens": 8, "micro_batches": 4}
BASES = {"bf16": {"dtype": "bfloat16"}, "NF4": {"dtype": "bfloat16", "quantization": "nf4"}}
DECODING = {
    "eager": "eager, growing cache",
    "static": "static cache, compiled, CUDA graphs",
    "continuous": "continuous batching",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU; writes nothing")
    options = parser.parse_args()
    shapes, job = (TINY, TINY_JOB) if options.tiny else ({name: SHAPES[name] for name in options.shapes}, JOB)
    records: list[Record] = []
    for shape, config in shapes.items():
        with tempfile.TemporaryDirectory() as folder:
            run("job.py", folder, json.dumps(config), "bfloat16")
            for base, how in BASES.items():
                where = {"shape": shape, "base": base}
                here = {"folder": folder, **job, **how}
                for column in options.columns:
                    records.append(attempt(where, column, here))
                check_same_work([r for r in records if (r["shape"], r["base"]) == (shape, base) and "work" in r])
                for column in DECODING:
                    records.append(attempt(where, column, here))
    raw = {"provenance": provenance(records), "runs": records}
    text = report(raw, options.tiny)
    print(text)
    if not options.tiny:
        (HERE / "gpu.json").write_text(json.dumps(raw, indent=1) + "\n")
        (HERE / "GPU.md").write_text(text)


def attempt(where: Record, column: str, job: Record) -> Record:
    """One process's record; where it fails, with the reason."""
    try:
        if column in DECODING:
            found = run("decode.py", json.dumps({"column": column, **job}))
        else:
            found = run_column(column, job)
    except (RuntimeError, OSError) as error:
        found = {"failed": str(error).splitlines()[-1]}
    record = {**where, "column": column, **found}
    print({k: v for k, v in record.items() if k not in ("versions", "flops", "work")}, flush=True)
    return record


def report(raw: Record, tiny: bool) -> str:
    lines = ["# PPO on one GPU", "", *provenance_lines(raw["provenance"]), ""]
    if tiny:
        lines += [
            "**Not run on a GPU: a tiny model on a CPU, to show that the code runs. The numbers mean nothing.**",
            "",
        ]
    lines += [
        "128 prompts of 256 tokens, 256 new tokens each, 2 PPO epochs, micro-batches of 16, random weights. Checked to "
        "be equal on every column: tokens generated, optimizer steps, LoRA parameters of the policy. Seconds of one "
        "iteration, measured once; peak memory as torch counts it on the device. Raw numbers: gpu.json.",
        "",
    ]
    for shape, base in dict.fromkeys((r["shape"], r["base"]) for r in raw["runs"]):
        runs = [r for r in raw["runs"] if (r["shape"], r["base"]) == (shape, base)]
        lines += [f"## {shape}, {base}", "", "| | s an iteration | generate | score | update | peak GiB |"]
        lines += ["|---|---|---|---|---|---|", *(training_row(r) for r in runs if r["column"] in COLUMNS), ""]
        lines += ["| decoding, one step of all prompts | ms | peak GiB |", "|---|---|---|"]
        lines += [*(decoding_row(r) for r in runs if r["column"] in DECODING), ""]
    return "\n".join(lines)


def training_row(record: Record) -> str:
    name = COLUMNS[record["column"]]
    if "failed" in record:
        return f"| {name} | failed: {record['failed'].replace('|', ' ')} | | | | |"
    seconds = [record["seconds"][phase] for phase in PHASES]
    numbers = " | ".join(f"{s:.2f}" for s in (sum(seconds), *seconds))
    return f"| {name} | {numbers} | {record['peak_mib'] / 1024:.1f} |"


def decoding_row(record: Record) -> str:
    name = DECODING[record["column"]]
    if "failed" in record:
        return f"| {name} | failed: {record['failed'].replace('|', ' ')} | |"
    return f"| {name} | {record['ms_per_step']:.2f} | {record['peak_mib'] / 1024:.1f} |"


if __name__ == "__main__":
    main()
