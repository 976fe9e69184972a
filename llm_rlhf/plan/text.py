"""A plan as a person reads it, and as a program does."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_rlhf.plan.forecast import StagePlan
from llm_rlhf.plan.remedies import Remedy
from llm_rlhf.plan.rows import Measured
from llm_rlhf.plan.steps import KEPT
from llm_rlhf.recipe.values import plain

GIB = 2**30
KEEPS = (
    "What the allocator keeps of freed tensors is a rough guess; with MALLOC_MMAP_THRESHOLD_=1048576 in its\n"
    "environment, a run does without it, and takes up to a third more processor time (docs/planning.md)."
)
NARROW = {
    "cpu": "what else runs here, and what the allocator keeps, must fit into that, too",
    "cuda": "the GPU's driver and fragmentation must fit into that, too",
}


def lines(plans: Sequence[StagePlan], process: int, memory: int | None, device: str) -> list[str]:
    """The table, and a line for each stage on where its memory goes.

    Args:
        process: bytes that the process holds before a model is in it; 0 where the device holds nothing of it.
        memory: bytes that there are; None: nobody knows.
    """
    timed = any(plan.seconds is not None for plan in plans)
    table = [("stage", "rows", "longest", "tokens", "steps", "memory", "disk", *["time"] * timed)]
    for plan in plans:
        steps = "" if plan.optimizer_steps is None else f"{plan.optimizer_steps:,}"
        held, disk = size(plan.bytes + process) if plan.memory else "", size(plan.disk) if plan.disk else ""
        lists = [
            (f"{'' if rows.exact else 'about '}{rows.rows:,} {name}", f"{rows.longest:,}", f"{rows.tokens:,}")
            for name, rows in plan.rows.items()
        ]
        first, *others = lists or [("", "", "")]
        took = "" if plan.seconds is None else duration(plan.seconds)
        table.append((plan.stage, *first, steps, held, disk, *[took] * timed))
        table += [("", *other, "", "", "", *[""] * timed) for other in others]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    told = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    told.append("")
    for plan in plans:
        if plan.memory:
            told.append(f"{plan.stage}: {where(plan)}")
        told += [f"  note: {plan.stage}: {note}" for note in plan.notes]
    if process:
        told.append(f"Of each, the process itself takes about {size(process)}, with its libraries and the rows.")
        told += [KEEPS] if any(KEPT in step for plan in plans for step in plan.memory.values()) else []
    return [*told, *_verdict(plans, process, memory, device)]


def _verdict(plans: Sequence[StagePlan], process: int, memory: int | None, device: str) -> list[str]:
    """The largest stage beside what there is, and what is left on the disk."""
    largest = max(plans, key=lambda plan: plan.bytes)
    held, disk = largest.bytes + process, size(sum(plan.disk for plan in plans))
    where_held = "of the machine" if device == "cpu" else "of the GPU, for one process"
    told = f"At most {size(held)} {where_held} ({largest.stage}); {disk} on disk."
    if (seconds := sum(plan.seconds or 0.0 for plan in plans)) > 0:
        told += f" About {duration(seconds)}, with one process on this machine and replies of full length"
        missing = [plan.stage for plan in plans if plan.seconds is None and plan.memory]
        told += f", without {', '.join(missing)}." if missing else "."
    if memory is None:
        return [told, "With --memory, as --memory 24GiB, it says whether that fits."]
    left = memory - held
    if left < 0:
        return [told]
    narrow = f" Less than a tenth is left; {NARROW[device]}." if left < memory / 10 else ""
    return [told, f"It fits into {size(memory)}: {size(left)} are left.{narrow}"]


def where(plan: StagePlan) -> str:
    """Where the memory of a stage's largest step goes, the most first."""
    parts = sorted(plan.memory[plan.largest].items(), key=lambda part: -part[1])
    return f"{plan.largest}: " + ", ".join(f"{kind} {size(held)}" for kind, held in parts if held >= 2**20)


def advice(plan: StagePlan, process: int, memory: int, found: Sequence[Remedy]) -> list[str]:
    """What to lower where a stage does not fit, with what it would hold then."""
    held = plan.bytes + process
    told = [
        f"{plan.stage} does not fit: {size(held)} at its largest step ({plan.largest}), {size(held - memory)} too much."
    ]
    if not found:
        return [*told, "  No recipe key makes it smaller: take a smaller base, or a larger machine."]
    names = ["all of these together" if remedy.together else remedy.told for remedy in found]
    for name, remedy in zip(names, found, strict=True):
        with_it = remedy.bytes + process
        fits = "fits" if with_it <= memory else f"still {size(with_it - memory)} too much"
        told.append(f"  {name.ljust(max(map(len, names)))}  {size(with_it).rjust(8)}  {fits}")
    return told


def refusal(plans: Sequence[StagePlan], process: int, memory: int) -> str:
    """What to say where these stages do not fit."""
    named = ", ".join(f"'{plan.stage}' ({size(plan.bytes + process)})" for plan in plans)
    what = f"section {named} would not fit" if len(plans) == 1 else f"sections {named} would not fit"
    return (
        f"Recipe {what} into {size(memory)}. Above stand keys that make each smaller: put them into the recipe, or "
        "behind its name, and plan again."
    )


def size(count: float) -> str:
    """Bytes, in GiB or MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def as_dict(
    plans: Sequence[StagePlan],
    process: int,
    memory: int | None,
    device: str,
    advised: Mapping[str, Sequence[Remedy]] | None = None,
) -> dict[str, Any]:
    """Plain values for JSON; bytes of the process are in each stage's.

    Args:
        advised: what makes a stage smaller, by stage, for those that do not fit.
    """
    advised = advised or {}
    return {
        "schema": 1,
        "device": device,
        "process_bytes": process,
        "available_bytes": memory,
        "stages": {plan.stage: _stage(plan, process, memory, advised.get(plan.stage, ())) for plan in plans},
    }


def _stage(plan: StagePlan, process: int, memory: int | None, found: Sequence[Remedy]) -> dict[str, Any]:
    held = plan.bytes + process
    told = {
        "bytes": held,
        "fits": None if memory is None else held <= memory,
        "largest_step": plan.largest,
        "steps": plan.memory,
        "remedies": [{"changes": plain(remedy.changes), "bytes": remedy.bytes + process} for remedy in found],
    }
    return {
        "rows": {name: _rows(rows) for name, rows in plan.rows.items()},
        "optimizer_steps": plan.optimizer_steps,
        "memory": told if plan.memory else None,
        "disk_bytes": plan.disk,
        "seconds": plan.seconds,
        "notes": plan.notes,
    }


def _rows(rows: Measured) -> dict[str, Any]:
    return {"rows": rows.rows, "longest": rows.longest, "tokens": rows.tokens, "exact": rows.exact}
