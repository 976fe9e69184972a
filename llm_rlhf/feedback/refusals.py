"""What the store answers to somebody who may not, or not now: each with the HTTP status that says so."""


class Refusal(Exception):  # noqa: N818 - it is the answer, not a fault of ours
    status = 400


class Unknown(Refusal):
    """Nobody has come in: no link, no cookie, or one that has run out."""

    status = 401


class Forbidden(Refusal):
    """Somebody is known, and this is not theirs."""

    status = 403


class Absent(Refusal):
    """There is no such thing."""

    status = 404


class Settled(Refusal):
    """It was said before, or can no longer be said: the question is somebody else's, or closed."""

    status = 409
