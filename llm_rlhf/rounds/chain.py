"""Rounds: train, ask people about what was trained, train again on what they said, and promote what has become better.

1. A round is an ordinary run in OUTPUT/round-K (recipes.py says by which recipe), made by the pipeline.
2. It is compared with the round that is out and with the first, and takes the first one's place where it passes every
   gate (gates.py). What was found goes into OUTPUT/rounds.json, OUTPUT/rounds.html and the round's manifest.
3. Its policy's answers to training prompts go into the queue of OUTPUT/feedback.db (select.py).
4. People answer, for as long as they need: the command ends, and goes on when it is given again. Simulated ones answer
   at once, through the same page (annotators.py).
5. What was said is written down as it stands (labels.py), and the next round is trained on it and on all that was there
   before.
6. Where demonstrations are imitated, SFT alone comes first, in OUTPUT/sft-alone. Each demonstration is preferred to
   what SFT alone, and the policy of each round, says to its prompt (imitation.py).

Every step is looked for before it is done, so that an interrupted command goes on where it stopped.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_rlhf.errors import DataError, RecipeError, RunFolderError
from llm_rlhf.evaluation.gate import never_measured
from llm_rlhf.export.folder import export
from llm_rlhf.feedback import snapshot
from llm_rlhf.feedback.database import STORE, Database
from llm_rlhf.feedback.tables import Batch
from llm_rlhf.launch import processes
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import sampling
from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.recipe.values import plain
from llm_rlhf.rounds.agreement import agreement, answered_of
from llm_rlhf.rounds.annotators import ask_simulated
from llm_rlhf.rounds.gates import check_first, check_losses, check_promotion, compare
from llm_rlhf.rounds.imitation import check_ahead, write_imitation_pairs
from llm_rlhf.rounds.labels import labels_folder, progress_of, write_labels
from llm_rlhf.rounds.page import write_page
from llm_rlhf.rounds.recipes import TABLE, first_recipe, later_recipe, mixture, round_folder, sft_alone
from llm_rlhf.rounds.select import Selection, batch_of
from llm_rlhf.rounds.select import select as fill_queue
from llm_rlhf.run_folder import MANIFEST, RunFolder, file_digest, read_json, write_json
from llm_rlhf.runs import data_section


@dataclass(frozen=True)
class Waiting:
    """People have not said enough yet."""

    round: int
    said: int  # labels
    wanted: int
    store: str


def run_rounds(
    recipe: Recipe, only: int | None = None, say: Callable[[str], None] = print
) -> tuple[dict[str, Any], Waiting | None]:
    """Go through the rounds as far as it goes.

    Args:
        only: rounds that are trained at most in this call; None: all.
        say: what is told on the way.

    Returns:
        what `rounds.json` holds, and what is waited for, if anything.

    Raises:
        RecipeError, DataError, RunFolderError, RunError: where a step cannot be carried out as it stands.
    """
    rounds = recipe.rounds
    assert rounds is not None
    if processes().num_processes > 1:
        raise RecipeError(
            "Rounds run in one process, and this launch has several. Run without `accelerate launch`, or each round by "
            "itself: its recipe.yaml is an ordinary one."
        )
    folder = recipe.folder
    if (folder / MANIFEST).is_file():
        raise RecipeError(
            f"{folder} is a run of its own, and rounds make theirs beneath their folder, in round-1, round-2, ... Set "
            f"another output_dir. To begin with this run there: mkdir -p OTHER && cp -r {folder} OTHER/round-1"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".rounds.lock", timeout=0):
            return _go_on(recipe, folder, only or rounds.count, say)
    except Timeout:
        raise RunFolderError(f"Another command is going through the rounds in {folder}; wait for it.") from None


def _go_on(
    recipe: Recipe, folder: Path, most: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], Waiting | None]:
    assert recipe.rounds is not None
    database = Database.of(recipe.rounds.store or folder / STORE)
    table: dict[str, Any] = {"schema": 1, "name": recipe.name, "promoted": None, "rounds": []}
    try:
        for number in range(1, min(recipe.rounds.count, most) + 1):
            if number > 1:
                waiting = _ask(recipe, folder, number - 1, database, say)
                if waiting is not None:
                    _write(folder, table | {"waiting": dataclasses.asdict(waiting)})
                    return table, waiting
            say(f"Round {number} of {recipe.rounds.count}")
            one = _recipe_of(recipe, folder, number, table["promoted"], database, say)
            _run(one, number)
            table["rounds"].append(_judged(recipe, folder, number, one, table, database, say))
            if number == 1 and recipe.rounds.count > 1 and (remedy := never_measured(table["rounds"][0]["gates"])):
                say(f"warning: {remedy}")
            if table["rounds"][-1]["promoted"]:
                table["promoted"] = number
            _write(folder, table)
    finally:
        database.close()
    return table, None


def _run(one: Recipe, number: int) -> None:
    """Make a round, or what is left of it.

    Raises:
        RunFolderError: where it was begun by another recipe, with what is to be done about that in rounds.
    """
    try:
        run_recipe(one)
    except RunFolderError as error:
        again = (
            "begin in another output_dir"
            if number == 1
            else (
                f"move {one.folder} and later rounds away, and give the same command: the round is made again, with "
                "the labels it had"
            )
        )
        raise RunFolderError(
            f"{error}\nThis is round {number}, and rounds take no --from. Put the recipe back as it was, or {again}. "
            "Where the folder of the rounds was moved, move it back: later rounds name files of the first."
        ) from None


def _write(folder: Path, table: dict[str, Any]) -> None:
    write_json(folder / TABLE, table)
    write_page(table, folder)


def _recipe_of(
    recipe: Recipe, folder: Path, number: int, out: int | None, database: Database, say: Callable[[str], None]
) -> Recipe:
    """The recipe of a round, whose labels are written down first.

    Args:
        out: the round whose policy a warm one begins from; None: no round has passed its gates, and what failed them
            is no start for the next.
    """
    assert recipe.rounds is not None
    run, target = round_folder(folder, number), labels_folder(folder, number)
    imitated = _imitated(recipe, folder, number, say) if recipe.rounds.imitation else []
    if number == 1:
        return later_recipe(recipe, number, target, imitated=imitated) if imitated else first_recipe(recipe)
    _write_labels(recipe, number, run, target, database, say)
    warm = None
    if recipe.rounds.retrain == "warm" and out is not None:
        made = file_digest(round_folder(folder, out) / str(recipe.method) / MANIFEST)
        warm = folder / "warm" / f"round-{out}-{made[:8]}"  # of this policy, if the round was ever made again
        if not warm.is_dir():
            export(str(round_folder(folder, out)), merge=True, to=str(warm), say=lambda _: None)
    return later_recipe(recipe, number, target, warm, imitated)


def _imitated(recipe: Recipe, folder: Path, number: int, say: Callable[[str], None]) -> list[Path]:
    """Files of pairs of demonstrations against SFT alone, and against each round before this one; each made once."""
    start = sft_alone(recipe)
    if not (start.folder / "sft" / MANIFEST).is_file():
        check_ahead(first_recipe(recipe))
    run_recipe(start)
    own, length = data_section(recipe, start.folder).preferences, (sampling(recipe) or (None,))[0]
    earlier = [round_folder(folder, before) for before in range(1, number)]
    files: list[Path] = []
    for run, made_by in [(start.folder, "sft"), *((run, str(recipe.method)) for run in earlier)]:
        made = file_digest(run / made_by / MANIFEST)
        files.append(folder / "imitation" / f"{run.name}-{made[:8]}.jsonl")  # of this policy, if it was ever made again
        if not files[-1].is_file():
            files[-1].parent.mkdir(exist_ok=True)
            count = write_imitation_pairs(run, files[-1], recipe.seed, length, for_evaluation=not own)
            say(f"      {count:,} demonstrations beside what {run.name} says ({files[-1]})")
    return files


def _write_labels(
    recipe: Recipe, number: int, run: Path, target: Path, database: Database, say: Callable[[str], None]
) -> None:
    """What people have said, for a round to be trained on; where nobody is asked, if anybody has said something."""
    assert recipe.rounds is not None
    batches = {}
    for about in range(1, number) if recipe.rounds.budget else ():
        batch = batch_of(database, rounds=recipe.name, round=about)
        if batch is None:
            raise RecipeError(
                f"The store {database.name} knows nothing of round {about} of {recipe.name!r}: it is another store, or "
                "the recipe's name has changed. Put it back, or begin the rounds again in another output_dir."
            )
        batches[about] = batch.id
    begun = sft_alone(recipe) if recipe.rounds.imitation else first_recipe(recipe)
    collected = (read_json(begun.folder / "collect" / snapshot.CARD) or {}).get("export")
    share = data_section(begun, RunFolder(begun.folder, written=False)).share_for_evaluation
    try:
        card = write_labels(database, target, run, batches, recipe.rounds.margins, collected, share)
    except DataError:
        if recipe.rounds.budget:
            raise
        return
    say(f"      {snapshot.in_words(card)} ({target})")
    _note(run, {"feedback": snapshot.summary(card)})


def _note(run: Path, what: dict[str, Any]) -> dict[str, Any]:
    """Add to what a run's manifest, which may not be there yet, says of its round; all that it says then."""
    run.mkdir(parents=True, exist_ok=True)
    manifest = read_json(run / MANIFEST) or {}
    told = (manifest.get("round") or {}) | what
    write_json(run / MANIFEST, manifest | {"round": told})
    return told


def _ask(recipe: Recipe, folder: Path, number: int, database: Database, say: Callable[[str], None]) -> Waiting | None:
    """Ask about a round's policy; None once enough was said."""
    rounds = recipe.rounds
    assert rounds is not None
    if not rounds.budget or (labels_folder(folder, number + 1) / snapshot.CARD).is_file():
        return None  # the next round was begun with what had been said then
    run = round_folder(folder, number)
    batch = batch_of(database, rounds=recipe.name, round=number)
    if batch is None:
        asked = Selection(
            run,
            budget=rounds.budget,
            strategy=rounds.strategy,
            policies=[str(run), *rounds.policies] if rounds.policies else [],
            people_per_item=rounds.people_per_item,
            seed=recipe.seed + number,
        )
        try:
            found = fill_queue(asked, database, {"rounds": recipe.name, "round": number})
        except DataError as error:
            raise DataError(
                f"Nothing can be asked about round {number}: {error} In rounds, `rounds.policies` (such as start) and "
                "more `data.prompts` bring other answers."
            ) from None
        by = _told(found.strategies)
        say(f"      asked about round {number}: {found.asked} of {found.candidates} candidates ({by})")
        batch = batch_of(database, rounds=recipe.name, round=number)
    assert batch is not None
    if rounds.store is not None:
        _check_own(batch, run, database)
    if rounds.annotators == "simulated":
        said = ask_simulated(database, rounds.simulated, recipe.seed * 100 + number)
        if said:
            say(f"      {said} labels by {rounds.simulated.people} simulated people")
    said, wanted = progress_of(database, batch.id)
    if not wanted:
        raise DataError(f"Nothing was asked about round {number}, and no label is there to go on with.")
    missing = rounds.enough * wanted - said > 1e-6  # 0.07 of 100 is a little over 7 in binary
    return Waiting(number, said, wanted, database.name) if missing else None


def _check_own(batch: Batch, run: Path, database: Database) -> None:
    """RecipeError where questions of a store that others use, too, are another folder's, of rounds of the same name."""
    asked = Path(str(batch.details.get("run")))
    if asked.resolve() != run.resolve() and (asked / MANIFEST).is_file():
        raise RecipeError(
            f"The questions in {database.name} about {batch.details.get('rounds')!r} are about {asked}, and this is "
            f"{run}: rounds of one name share a store. Give one of them another name, or another rounds.store."
        )


def _judged(
    recipe: Recipe,
    folder: Path,
    number: int,
    one: Recipe,
    table: dict[str, Any],
    database: Database,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """A round's line in the table, also in its manifest: found once, as long as nothing that it rests on changes."""
    assert recipe.rounds is not None
    run, method, out = round_folder(folder, number), str(one.method), int(table["promoted"] or 1)
    before = {} if number == 1 else {"round": number - 1, "run": f"round-{number - 1}", "compared_with": out}
    record: dict[str, Any] = {
        "round": number,
        "run": run.name,
        "parent": before or None,
        "hashes": {
            stage: file_digest(run / stage / MANIFEST)
            for stage in ("world", "sft", "reward", method, "evaluate")
            if (run / stage).is_dir()
        },
        "thresholds": plain(recipe.gate) | {"reward_drop": recipe.rounds.reward_drop},
    }
    known = (read_json(run / MANIFEST) or {}).get("round")
    if isinstance(known, dict) and all(known.get(name) == value for name, value in record.items()):
        return known
    report = read_json(run / "report.json")
    record |= {"start": _gains(report, method), "gains": {}}
    if number > 1 or recipe.rounds.imitation:
        record |= _labels(recipe, folder, number, one)
    if number == 1:
        lines = check_first(recipe, run, report)
    else:
        anchor = next((one["round"] for one in table["rounds"] if one["promoted"]), out)
        compared = {of: compare(run, round_folder(folder, of)) for of in sorted({1, number - 1, out, anchor})}
        lines = check_promotion(recipe, run, report, compared[out], round_folder(folder, out))
        if table["promoted"] is None:  # an earlier one that failed excuses nothing: see what training began from
            told_already = {line.text for line in lines}
            of_start = [line for line in check_first(recipe, run, report) if line.text not in told_already]
            lines += [dataclasses.replace(line, text=f"since its start, {line.text}") for line in of_start]
        elif anchor != out:
            lines += check_losses(recipe, compared[anchor], f"round {anchor}")
        record["gains"] = {str(of): _gains(found, method) for of, found in compared.items()}
        if recipe.rounds.budget:
            batch = batch_of(database, rounds=recipe.name, round=number - 1)
            assert batch is not None, "it was asked"
            found = agreement(answered_of(database, batch.id))
            record["agreement"] = {"about": number - 1} | {name: one._asdict() for name, one in found.items()}
    record["policy"] = [e for e in report["estimates"] if e["subject"] == method and e["name"] in POLICY]
    record["gates"] = [line.as_dict() for line in lines]
    record["promoted"] = all(line.passed for line in lines)
    told = _note(run, record)
    for line in lines:
        if not line.passed:
            say(f"      {line.text}")
    say(f"      round {number} " + ("is promoted" if record["promoted"] else "is not promoted"))
    return told


POLICY = ("gold_score", "heldout_reward", "over_refusal", "refusal_harmful", "kl", "response_length")
GAINS = ("gold_gain", "heldout_reward_gain", "reward_gain", "refusal_harmful_change", "over_refusal_change", "kl")


def _gains(report: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [e for e in report["estimates"] if e["subject"] == method and e["name"] in GAINS]


def _labels(recipe: Recipe, folder: Path, number: int, one: Recipe) -> dict[str, Any]:
    """What a round was trained on beside the recipe's own data, and where that came from."""
    assert recipe.rounds is not None
    labels = labels_folder(folder, number)
    card = read_json(labels / snapshot.CARD)
    told = {} if card is None else {"labels": card | {"folder": str(labels)}}
    return {"mixture": mixture(one), **told, "retrain": recipe.rounds.retrain}


def _told(strategies: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(strategies.items()))
