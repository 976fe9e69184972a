"""The command `llm-rlhf gate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from llm_rlhf.cli.completion import policies
from llm_rlhf.cli.exits import told_in_one_message
from llm_rlhf.cli.next_steps import after_gate, tell
from llm_rlhf.launch import speaks_for_all


def gate(
    run: Annotated[str, typer.Argument(help="run folder, or a folder that evaluate wrote", autocompletion=policies)],
    overrides: Annotated[list[str] | None, typer.Argument(help="gate.key=value, laid over the recipe")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="RUN",
            help="Hold the policy against this run's, not its start.",
            autocompletion=policies,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every check as JSON.")] = False,
) -> None:
    """Hold an evaluated policy to the thresholds of its recipe: exit code 0 where all pass, 1 where one does not.

    Example: llm-rlhf gate runs/hh gate.kl=20

    Against the policy that is out today: llm-rlhf gate runs/hh --against runs/released
    """
    with told_in_one_message():
        from llm_rlhf.evaluation.gate import check_gate, gate_of, stage_checks
        from llm_rlhf.evaluation.report.comparison import read_policy_report

        folder = Path(run)
        report = read_policy_report(folder)
        section = gate_of(folder, report, overrides or ())
        if against is not None:
            from llm_rlhf.evaluation.against import against as paired

            other = Path(against)
            report = report | {"estimates": paired((folder, report), (other, read_policy_report(other)))}
        lines = check_gate(report, section, stage_checks(folder))
        passed = all(line.passed for line in lines)
        if speaks_for_all():
            if as_json:
                told = {"passed": passed, "lines": [line.as_dict() for line in lines]}
                print(json.dumps(told, ensure_ascii=False))
            else:
                print("\n".join(f"{line.result:<13}{line.text}" for line in lines))
                failed = sum(not line.passed for line in lines)
                held = f"{run} against {against}" if against is not None else run
                print(f"\n{held} {'passes' if passed else f'fails {failed} of {len(lines)} checks'}.")
        tell(after_gate(folder, passed), as_json)
    if not passed:
        raise typer.Exit(1)
