"""What can go wrong that a person can mend. The command line tells each in one message, without a traceback.

Messages quote what was found, and go to logs and to those who are asked for help: no secret stays in one.
"""

from llm_rlhf.redaction import redacted


class _ToldError(Exception):
    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message), keyed=True))


class RecipeError(_ToldError, ValueError):
    """The request was wrong; the message says which key, what was found, the rule and what to do."""


class DataError(_ToldError, ValueError):
    """A source cannot be used, or nothing is left of it; the message says which, why, and what to do."""


class RunFolderError(_ToldError, ValueError):
    """The folder cannot be used as asked; the message says why and what to do."""


class RunError(_ToldError, RuntimeError):
    """The run failed for a reason that its message explains; nothing is wrong with the request."""


class NonFiniteError(RunError):
    """A number that must be finite is not; the weights have not been changed by it."""
