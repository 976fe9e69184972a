"""What can go wrong that a person can mend. The command line tells each in one message, without a traceback."""

import errno

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
TORCH_SAYS = ("PytorchStreamWriter", "unexpected pos", "iostream")  # where it cannot write; no class of its own


def of_disk(error: BaseException) -> bool:
    """Whether something could not be written because the disk is full, failing or read-only, whoever was writing."""
    if isinstance(error, OSError):
        return error.errno in DISK
    if type(error).__name__ == "SafetensorError":
        return "while serializing" in str(error)
    return type(error) is RuntimeError and any(words in str(error) for words in TORCH_SAYS)


def first_line(error: BaseException) -> str:
    """What an error says, in a line of bounded length."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


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
