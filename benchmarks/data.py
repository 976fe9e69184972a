"""How long a large preference file takes to be read, checked and split, and how much memory, cold and from the cache;
and how long `llm-rlhf data check` takes with it, near-duplicates and personal data included.

    python benchmarks/data.py HH_FILE [--pairs 170000]

HH_FILE is any HH-RLHF file (transcripts under `chosen` and `rejected`, .jsonl or .jsonl.gz). Its rows are drawn again
and again, each time with another number in front of the first user turn, so that all openings differ. Every run is a
process of its own; seconds are of the wall, and memory is the process's peak, imports and mapped files included.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURED = """
import json, resource, sys, time
started = time.time()
import datasets
from llm_rlhf.data.splits import load_splits
from llm_rlhf.recipe.sections import DataSection, Source
datasets.disable_progress_bars()
imported = time.time()
splits, set_aside = load_splits(DataSection(preferences=[Source(source=sys.argv[1], objective="harmless")]))
print(json.dumps({
    "imports_seconds": imported - started,
    "seconds": time.time() - imported,
    "cpu_seconds": time.process_time(),
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024),
    "splits": splits.counts["splits"],
    "set_aside": len(set_aside),
}))
"""

CHECKED = """
import json, resource, sys, time
from typer.testing import CliRunner
from llm_rlhf.cli.main import app
started = time.time()
result = CliRunner().invoke(app, ["data", "check", sys.argv[1]])
assert result.exit_code in (0, 1), result.output
print(json.dumps({
    "seconds": time.time() - started,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024),
}))
"""


def resample(source: Path, target: Path, pairs: int) -> None:
    """Write `pairs` rows of `source` with openings that all differ."""
    data = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    rows = [json.loads(line) for line in data.splitlines() if line.strip()]
    draw = random.Random(0)
    with target.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            row = rows[number] if number < len(rows) else draw.choice(rows)
            changed = {side: row[side].replace("Human:", f"Human: {number}.", 1) for side in ("chosen", "rejected")}
            file.write(json.dumps(changed, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hh_file", type=Path)
    parser.add_argument("--pairs", type=int, default=170_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "pairs.jsonl"
        resample(asked.hh_file, path, asked.pairs)
        print(f"{asked.pairs} pairs, {path.stat().st_size / 2**20:.0f} MiB")
        environment = os.environ | {"HF_DATASETS_CACHE": str(Path(name) / "cache"), "HF_HUB_OFFLINE": "1"}
        for what in ("cold", "cached"):
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, str(path)], env=environment, check=True, capture_output=True, text=True
            )
            found = json.loads(done.stdout)
            print(
                f"{what:7} {found['seconds']:6.1f} s ({found['cpu_seconds']:.1f} s of CPU with imports), "
                f"peak {found['peak_mb']:.0f} MiB, {found['set_aside']} rows set aside, {found['splits']}"
            )
        done = subprocess.run(
            [sys.executable, "-c", CHECKED, str(path)], env=environment, check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout)
        print(f"data check {found['seconds']:.1f} s, peak {found['peak_mb']:.0f} MiB")


if __name__ == "__main__":
    main()
