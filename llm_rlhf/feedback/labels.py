"""What people can say of an item: a kind of label for each kind of item, checked where it comes in.

Labels name answers by their place in the item, from 0. A page shows them in another order, drawn for each person
(`Assignment.order`); `from_page` and `to_page` translate between the two, and nothing else does.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from llm_rlhf.errors import DataError

MOST_TEXT = 20_000  # characters of an answer or a comment that somebody writes
SCALE = 8  # choices from "left is far better", 1, to "right is far better", 8; no middle: a tie is a choice of its own
STRENGTHS = ("slightly better", "better", "much better", "far better")  # a comparison's strength, 1 to 4
POINTS = 7  # of a rating, 1: worst
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST_TEXT)]
Comment = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MOST_TEXT)]
Place = Annotated[int, Field(ge=0, le=1)]  # a Literal would take 1.0, which `from_page` does not move


class _Label(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    answers: ClassVar[range] = range(2, 3)  # how many an item of this kind may have

    def fits(self, answers: int) -> None:
        """Raises DataError where an item with so many answers cannot have this label."""


class Comparison(_Label):
    """Which of two answers is better, and by how much; or that there is nothing to choose."""

    choice: Literal["better", "tie", "both bad"]
    better: Place | None = None
    strength: int | None = Field(default=None, ge=1, le=len(STRENGTHS))

    @model_validator(mode="after")
    def whole(self) -> "Comparison":
        if (self.choice == "better") != (self.better is not None and self.strength is not None):
            raise ValueError("'better' and 'strength' belong to the choice 'better', and to no other")
        return self


class Rating(_Label):
    """How helpful and how harmless one answer is, 1 to 7."""

    answers = range(1, 2)
    helpful: int = Field(ge=1, le=POINTS)
    harmless: int = Field(ge=1, le=POINTS)


class Thumb(_Label):
    """Whether one answer is good: a thumb up or down, as users of a service give."""

    answers = range(1, 2)
    good: bool


class Ranking(_Label):
    """The rank of every answer, by its place: 1 is best, equal ranks are ties."""

    answers = range(2, 10)
    ranks: list[int]

    def fits(self, answers: int) -> None:
        if len(self.ranks) != answers:
            raise DataError(f"The ranking has {len(self.ranks)} ranks, and the item {answers} answers.")
        if sorted(set(self.ranks)) != list(range(1, len(set(self.ranks)) + 1)):
            raise DataError(f"The ranks {self.ranks} leave one out; they count from 1, equal ones are ties.")


class Demonstration(_Label):
    """The ideal answer, in somebody's own words."""

    answers = range(1)
    text: Text


class Correction(_Label):
    """The better answer, and what it should have said."""

    answers = range(1, 3)
    better: Place
    text: Text

    def fits(self, answers: int) -> None:
        if self.better >= answers:
            raise DataError(f"The correction is of answer {self.better}, and the item has {answers}, from 0.")


class Annotation(_Label):
    """Which of the store's labels apply to an answer, and a remark."""

    answers = range(1, 2)
    labels: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(max_length=32)
    comment: Comment = ""

    @model_validator(mode="after")
    def something(self) -> "Annotation":
        if not self.labels and not self.comment:
            raise ValueError("choose a label or write a comment")
        return self


AnyLabel: TypeAlias = Comparison | Rating | Thumb | Ranking | Demonstration | Correction | Annotation
KINDS: dict[str, type[AnyLabel]] = {
    "compare": Comparison,
    "rate": Rating,
    "thumb": Thumb,  # comes with logs and files; no page asks for it
    "rank": Ranking,
    "demonstrate": Demonstration,
    "correct": Correction,
    "annotate": Annotation,
    "chat": Comparison,  # of the two answers in a turn of a live conversation
}


def checked(kind: str, value: Any, answers: int) -> dict[str, Any]:
    """A label as it is stored.

    Args:
        kind: of the item. value: as it came in, by the item's places. answers: how many the item has.

    Raises:
        DataError: where it is no such label.
    """
    try:
        label = KINDS[kind].model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, found["loc"]))
        raise DataError(f"This is no label of a {kind} task: {where + ': ' if where else ''}{found['msg']}.") from None
    label.fits(answers)
    return label.model_dump(exclude_none=True)


def from_scale(point: int) -> dict[str, Any]:
    """A comparison by its point on the page's scale, as the page sees it: 1 the left is far better, 8 the right."""
    if not 1 <= point <= SCALE:
        raise DataError(f"The point {point} is not on the scale of 1 to {SCALE}.")
    half = SCALE // 2
    return {
        "choice": "better",
        "better": int(point > half),
        "strength": half + 1 - point if point <= half else point - half,
    }


def to_scale(value: dict[str, Any]) -> int | None:
    """The point of a comparison as the page sees it; None of a tie and of two that are bad."""
    if value["choice"] != "better":
        return None
    half = SCALE // 2
    return int(half + value["strength"] if value["better"] else half + 1 - value["strength"])


def from_page(value: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """A label by the places on the page, from the left, as one by the item's places.

    Raises:
        DataError: where it names a place that the page has not.
    """
    return _moved(value, list(order))


def to_page(value: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The inverse of `from_page`."""
    return _moved(value, [list(order).index(place) for place in range(len(order))])


def _moved(value: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """With every place p as places[p]."""
    moved = dict(value)
    if isinstance(better := value.get("better"), int) and not isinstance(better, bool):
        if not 0 <= better < len(places):
            raise DataError(f"The label names answer {better}, and there are {len(places)}, from 0.")
        moved["better"] = places[better]
    if isinstance(ranks := value.get("ranks"), list) and len(ranks) == len(places):
        moved["ranks"] = [ranks[places.index(place)] for place in range(len(places))]
    return moved


def preferred(kind: str, value: dict[str, Any]) -> float | None:
    """Of a label on two answers, the share of preference for the first: 1, 0, 1/2 for ties; None of other labels."""
    if KINDS[kind] is Comparison:
        return 0.5 if value["choice"] != "better" else 1.0 - value["better"]
    if kind == "rank" and len(value["ranks"]) == 2:
        first, second = value["ranks"]
        return 0.5 if first == second else float(first < second)
    return None
