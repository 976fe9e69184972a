"""What can go wrong that a person can mend. The command line tells each in one message, without a traceback."""


class RecipeError(ValueError):
    """The request was wrong; the message says which key, what was found, the rule and what to do."""


class DataError(ValueError):
    """A source cannot be used, or nothing is left of it; the message says which, why, and what to do."""


class RunFolderError(ValueError):
    """The folder cannot be used as asked; the message says why and what to do."""


class RunError(RuntimeError):
    """The run failed for a reason that its message explains; nothing is wrong with the request."""


class NonFiniteError(RunError):
    """A number that must be finite is not; the weights have not been changed by it."""
