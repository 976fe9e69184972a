"""People's labels as a judge: `people:STORE` becomes `people:FILE`, what a store's people said up to now."""

from pathlib import Path

from llm_rlhf.feedback.database import STORE, Database
from llm_rlhf.feedback.snapshot import check, write
from llm_rlhf.recipe.sections import PEOPLE, verdict_file

VERDICTS = "verdicts.jsonl"


def with_verdicts(
    judge: str | None, folder: Path, made_for: str, writes: bool = True, becomes: Path | None = None
) -> str | None:
    """The judge itself; one that names a store, or a run, with the file of its verdicts.

    Args:
        folder: where a store's verdicts are written, with the card of who gave them.
        made_for: what they judge, as a person finds it; the store keeps it.
        becomes: what the folder will be called, where that is not its name yet.
        writes: whether this process is the one that does, where there are several.

    Raises:
        RecipeError, DataError: where there is no such store, or no label in it.
    """
    if (collected := _collected(judge)) is not None:
        return f"{PEOPLE}{collected}"
    store = store_of(judge)
    if store is None:
        return judge
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        database = Database.of(store, create=False)
        try:
            write(database, folder, made_for, becomes=becomes)
        finally:
            database.close()
    return f"{PEOPLE}{folder / VERDICTS}"


def check_store_of(judge: str | None) -> None:
    """RecipeError, DataError where a judge names a store that is not there, or has no label."""
    if _collected(judge) is None and (store := store_of(judge)) is not None:
        check(store)


def store_of(judge: str | None) -> str | None:
    """The store that a judge names; None where it names none."""
    if judge is None or not judge.startswith(PEOPLE) or verdict_file(judge) is not None:
        return None
    return judge.removeprefix(PEOPLE)


def _collected(judge: str | None) -> Path | None:
    """The verdicts that a run has collected, where it is named and has no store of its own."""
    if (store := store_of(judge)) is None or "://" in store or (Path(store) / STORE).is_file():
        return None
    file = Path(store) / "collect" / VERDICTS
    return file if file.is_file() else None
