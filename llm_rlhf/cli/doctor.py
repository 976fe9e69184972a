"""The command `llm-rlhf doctor`."""

import json
import sys
from typing import Annotated

import typer

from llm_rlhf.cli.exits import check_alone, told_in_one_message
from llm_rlhf.cli.next_steps import after_doctor, tell

MARKS = {"good": ("✓", "ok"), "note": ("!", "note"), "broken": ("✗", "BROKEN")}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON at the end.")] = False,
) -> None:
    """Look at this machine, within half a minute: versions, devices, number formats, hub, disk, and one step of PPO.

    Example: llm-rlhf doctor

    Exit code 1 where something is broken that every run needs.
    """
    with told_in_one_message("interrupted."):
        check_alone("doctor")
        from llm_rlhf.doctor.examine import examine

        pictures = (sys.stdout.encoding or "").lower().startswith("utf")  # not on every console
        findings = []
        for finding in examine():
            findings.append(finding)
            if not as_json:
                picture, word = MARKS[finding.mark]
                mark = picture if pictures else f"{word:6}"
                remedy = f"\n  {'' if pictures else ' ' * 5}→ {finding.remedy}" if finding.remedy else ""
                print(f"{mark} {finding.name}: {finding.found}{remedy}", flush=True)
        broken = [finding.name for finding in findings if finding.mark == "broken"]
        if as_json:
            print(json.dumps({"findings": [f._asdict() for f in findings], "broken": broken}, ensure_ascii=False))
        else:
            print(f"\n{'Broken: ' + ', '.join(broken) if broken else 'Nothing is broken.'}")
        tell(after_doctor(bool(broken)), as_json)
        if broken:
            raise typer.Exit(1)
