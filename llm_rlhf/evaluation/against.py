"""Two runs' policies against each other without asking either again: from the replies that both kept.

Replies to the same prompts, sampled in the same way, are paired. They are compared by what was measured of them where
that was one and the same instrument: the true score, a reward model that is the same in both, the rule for refusals.
"""

from pathlib import Path
from typing import Any

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.answers import FACTS, MEASURED, Answers
from llm_rlhf.evaluation.material import REFUSALS
from llm_rlhf.evaluation.report.cautions import judge_identity
from llm_rlhf.evaluation.report.measures import Entry, contest
from llm_rlhf.evaluation.suites import refusals
from llm_rlhf.evaluation.suites.gains import compare
from llm_rlhf.json_lines import read_json_lines

OF_THE_POLICY = ("kl", "token_logprob_change", "reward_accuracy")  # of its own report, which no other policy changes


def against(own: tuple[Path, dict[str, Any]], other: tuple[Path, dict[str, Any]]) -> list[Entry]:
    """The estimates of one report's policy over another's, as `check_gate` reads them.

    What is known of the policy alone, its distance from its own start and its reward model, comes from its own report.

    Args:
        own, other: folder and report of each.

    Raises:
        RecipeError: where the two did not answer the same prompts in the same way; it says what to run.
    """
    (folder, report), (its_folder, its_report) = own, other
    subjects = contest(report["estimates"])[0], contest(its_report["estimates"])[0]
    names = (subjects[0], f"{subjects[1]} of {its_folder.resolve().name}")
    shared = _shared(report, its_report)
    if _decoding(report) != _decoding(its_report):
        raise _cannot(folder, its_folder, "sampled their replies differently")
    estimates: list[Entry] = []
    for file in ("replies.jsonl", f"replies_{REFUSALS}.jsonl"):
        rows, its_rows = _rows(folder, file), _rows(its_folder, file)
        if [row["prompt"] for row in rows] != [row["prompt"] for row in its_rows]:
            raise _cannot(folder, its_folder, f"did not answer the same prompts ({file})")
        if not rows:
            if file == "replies.jsonl":
                raise _cannot(folder, its_folder, f"kept no replies ({file})")
            continue
        if any("refused" in row[subjects[0]] for row in rows) and not any("kind" in row for row in rows):
            raise _cannot(folder, its_folder, "were evaluated by a version that kept no kinds of prompt")
        prompts = [_prompt(row, place) for place, row in enumerate(rows)]
        policy, reference = (
            _answers(found, who, shared) for found, who in zip((rows, its_rows), subjects, strict=True)
        )
        made = refusals.estimates if file != "replies.jsonl" else compare
        estimates += [estimate.as_dict() for estimate in made(prompts, policy, reference, names=names)]
    kept = [e for e in report["estimates"] if e["name"] in OF_THE_POLICY or e["name"].startswith("accuracy_over_")]
    return estimates + kept


def _cannot(folder: Path, other: Path, why: str) -> RecipeError:
    return RecipeError(
        f"{folder} and {other} {why}, so that their replies cannot be paired. Ask both the same: llm-rlhf evaluate "
        f"{folder} --reference other={other} --output FOLDER, then llm-rlhf gate FOLDER."
    )


def _shared(report: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """What measured both: the rules always, a reward model where it is known to be the same."""
    identities = {name: (judge_identity(report, name), judge_identity(other, name)) for name in ("heldout", "reward")}
    same = {name for name, (own, its) in identities.items() if own is not None and own == its}
    return {"gold", *same} | ({"refused"} if _detector(report) == _detector(other) else set())


def _decoding(report: dict[str, Any]) -> dict[str, Any]:
    """How replies were sampled; another seed is another draw of the same."""
    return {key: value for key, value in report["provenance"]["decoding"].items() if key != "seed"}


def _detector(report: dict[str, Any]) -> Any:
    return report["provenance"]["instruments"].get("refusal_detector")


def _rows(folder: Path, file: str) -> list[dict[str, Any]]:
    for path in (folder / file, folder / "evaluate" / file):
        if path.is_file():
            return read_json_lines(path)
    return []


def _prompt(row: dict[str, Any], place: int) -> Prompt:
    facts = {name: row[name] for name in FACTS if name in row}
    return Prompt(row["prompt"], row["objective"], Origin("replies", place + 1), facts)


def _answers(rows: list[dict[str, Any]], subject: str, shared: set[str]) -> Answers:
    """What was kept of the policy's replies; lengths are in words, as token ids were not."""
    given = [row[subject] for row in rows]
    texts = [reply["reply"] for reply in given]
    found = Answers(texts, [len(text.split()) for text in texts], [reply["stopped"] for reply in given])
    for name in MEASURED:
        if name in shared and all(name in reply for reply in given):
            setattr(found, name, [reply[name] for reply in given])
    return found
