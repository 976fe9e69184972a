"""A plan as a person reads it, and as a program does."""

from collections.abc import Sequence
from typing import Any

from llm_rlhf.plan.forecast import StagePlan
from llm_rlhf.plan.machine import keeps_freed_memory
from llm_rlhf.plan.remedies import Remedy
from llm_rlhf.plan.rows import Measured

GIB = 2**30
KEEPS = (
    "glibc may keep several times as much of tensors under 32 MiB when they are freed; with\n"
    "MALLOC_MMAP_THRESHOLD_=1048576 in its environment, a run holds about what is said here (docs/planning.md)."
)


def lines(plans: Sequence[StagePlan], process: int, memory: int | None, device: str) -> list[str]:
    """The table, and a line for each stage on where its memory goes.

    Args:
        process: bytes that the process holds before a model is in it; 0 where the device holds nothing of it.
        memory: bytes that there are; None: nobody knows.
    """
    table = [("stage", "rows", "longest", "tokens", "steps", "memory", "disk")]
    for plan in plans:
        steps = "" if plan.optimizer_steps is None else f"{plan.optimizer_steps:,}"
        held, disk = size(plan.bytes + process) if plan.memory else "", size(plan.disk) if plan.disk else ""
        lists = [
            (f"{'' if rows.exact else 'about '}{rows.rows:,} {name}", f"{rows.longest:,}", f"{rows.tokens:,}")
            for name, rows in plan.rows.items()
        ]
        first, *others = lists or [("", "", "")]
        table.append((plan.stage, *first, steps, held, disk))
        table += [("", *other, "", "", "") for other in others]
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
        told.append(f"The process itself, its libraries and the rows: {size(process)}, counted in each stage's memory.")
        told += [KEEPS] if keeps_freed_memory() else []
    largest = max(plans, key=lambda plan: plan.bytes)
    there = "" if memory is None else f", of {size(memory)}"
    where_held = "of the machine" if device == "cpu" else "of the GPU, for one process"
    held, disk = size(largest.bytes + process), size(sum(plan.disk for plan in plans))
    told.append(f"At most {held}{there} {where_held} ({largest.stage}); {disk} on disk.")
    return told


def where(plan: StagePlan) -> str:
    """Where the memory of a stage's largest step goes, the most first."""
    parts = sorted(plan.memory[plan.largest].items(), key=lambda part: -part[1])
    return f"{plan.largest}: " + ", ".join(f"{kind} {size(held)}" for kind, held in parts if held >= 2**20)


def refusal(plan: StagePlan, process: int, memory: int, found: Sequence[Remedy]) -> str:
    """What to say where a stage does not fit."""
    held = plan.bytes + process
    fit = [remedy for remedy in found if remedy.bytes + process <= memory]
    told = [f"{remedy.told} ({size(remedy.bytes + process)})" for remedy in found[:5]]
    tried = f" Tried one by one: {'; '.join(told)}." if told else ""
    advice = "Each that fits does by itself." if fit else "None is enough by itself; put several together."
    if not told:
        advice = "No single key makes it smaller: take a smaller base, or a larger machine."
    return (
        f"Recipe section '{plan.stage}' would hold {size(held)} at its largest step ({plan.largest}), and there are "
        f"{size(memory)}; it must fit.{tried} {advice}"
    )


def size(count: float) -> str:
    """Bytes, in GiB or MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def as_dict(plans: Sequence[StagePlan], process: int, memory: int | None, device: str) -> dict[str, Any]:
    """Plain values for JSON; bytes of the process are in each stage's."""
    return {
        "schema": 1,
        "device": device,
        "process_bytes": process,
        "available_bytes": memory,
        "stages": {plan.stage: _stage(plan, process) for plan in plans},
    }


def _stage(plan: StagePlan, process: int) -> dict[str, Any]:
    return {
        "rows": {name: _rows(rows) for name, rows in plan.rows.items()},
        "optimizer_steps": plan.optimizer_steps,
        "memory": {"bytes": plan.bytes + process, "largest_step": plan.largest, "steps": plan.memory}
        if plan.memory
        else None,
        "disk_bytes": plan.disk,
        "notes": plan.notes,
    }


def _rows(rows: Measured) -> dict[str, Any]:
    return {"rows": rows.rows, "longest": rows.longest, "tokens": rows.tokens, "exact": rows.exact}
