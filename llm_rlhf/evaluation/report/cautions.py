"""What keeps several reports from being put side by side without a word: one policy twice, other prompts, decodings."""

import json
from collections.abc import Sequence
from typing import Any

from llm_rlhf.recipe.sections import METHODS


def cautions(reports: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Sentences for the reader of a comparison, the gravest first."""
    lines = []
    policies = [policy_weights(report) for report in reports]
    for i, own in enumerate(policies):
        for j in range(i):
            if own and own == policies[j]:
                lines.append(
                    f"{names[j]} and {names[i]} are one and the same policy. It is one repetition: no mean over runs "
                    f"counts {names[i]} beside {names[j]}."
                )
    for key, called in (("response_length", "tokens at most"), ("temperature", "as their temperature")):
        values = [report["provenance"]["decoding"].get(key) for report in reports]
        if any(value != values[0] for value in values):
            told = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
            lines.append(f"Replies were sampled differently ({told}: {called}); lengths and gains do not compare.")
    different = []
    if _differ([report["provenance"]["hashes"].get("prompts") for report in reports]):
        different.append("answered the same prompts")
    if _differ([judge_identity(report, "heldout") for report in reports]):
        different.append("was scored by the same held-out model")
    if different:
        lines.append(f"Not every run {' or '.join(different)}: gains over each one's start compare, levels do not.")
    return lines


def policy_weights(report: dict[str, Any]) -> frozenset[str]:
    """SHA-256 of what makes the report's policy; empty where that is not recorded (an endpoint, a hub id)."""
    policy = report["provenance"]["recipe"].get("policy")
    if isinstance(policy, dict):
        known = policy.get("adapter") or policy.get("weights") or {}
        return frozenset(known.values()) if isinstance(known, dict) else frozenset()
    hashes = report["provenance"]["hashes"].items()
    folders = tuple(f"{method}/policy/" for method in METHODS)
    return frozenset(digest for path, digest in hashes if path.startswith(folders) and path.endswith(".safetensors"))


def judge_identity(report: dict[str, Any], name: str) -> str | None:
    """What tells the report's reward model of this role from others: its weights; None where they are not recorded."""
    known = report["provenance"]["instruments"]
    used = [known[of] for of in sorted(known) if of == name or of.startswith(f"{name}/")]
    if used:
        return json.dumps([sorted(of["weights"].values()) or [of["model"], of["revision"]] for of in used])
    weights = [
        [digest]
        for path, digest in sorted(report["provenance"]["hashes"].items())
        if path.startswith("reward/") and path.endswith("adapter_model.safetensors")
        if (path.split("/")[1] == "heldout") == (name == "heldout")
    ]
    return json.dumps(weights) if weights else None


def _differ(values: Sequence[str | None]) -> bool:
    """Whether two of them are known and not the same."""
    return len({value for value in values if value is not None}) > 1
