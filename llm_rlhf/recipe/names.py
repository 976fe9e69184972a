"""What a run may be called, and where its folder may lie: on every system, and as commands name it afterwards."""

import os
import re
from pathlib import PurePath

from llm_rlhf.errors import RecipeError

LONGEST = 100  # signs of a name; a file system takes 255 bytes, and names of files are made of it
BYTES = 255
_TAKEN = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")  # devices, on Windows
_UNFIT = {
    "/": "it would lie in another folder", "\\": "it would lie in another folder on Windows",
    ":": "a stage of a run is named RUN:STAGE", "*": "patterns of files have it", "?": "patterns of files have it",
    '"': "Windows has no such file", "<": "Windows has no such file", ">": "Windows has no such file",
    "|": "Windows has no such file",
}  # fmt: skip


def check_name(name: str, key: str = "name") -> None:
    """RecipeError where a run cannot be called so: the name is a folder's, under `runs/`."""
    why = f"it has {len(name)} signs, and {LONGEST} are the most" if len(name) > LONGEST else _unfit(name)
    if why is not None:
        raise RecipeError(
            f"Recipe key {key!r} is {_short(name)}, which cannot be a run's name: {why}. Take letters, digits, '-', "
            "'_' and '.'; where the run lies is said by 'output_dir'."
        )


def check_folder(folder: str | None, key: str = "output_dir") -> None:
    """RecipeError where no run can lie in such a folder."""
    if folder is None:
        return
    why = "it is empty" if not folder.strip() else None
    *above, last = PurePath(folder).parts or (folder,)
    if why is None and not folder.isprintable():
        why = "it has a sign that cannot be seen"
    if why is None and (longest := max((len(os.fsencode(part)) for part in above), default=0)) > BYTES:
        why = f"a part of it has {longest} bytes, and {BYTES} are the most"
    if why is None and last not in (".", "..", os.sep):  # those above may be there already
        why = _unfit(last)
    if why is not None:
        raise RecipeError(
            f"Recipe key {key!r} is {_short(folder)}, where no run can lie: {why}. Name a folder, as runs/NAME, or "
            "leave the key out."
        )


def _unfit(name: str) -> str | None:
    """Why a part of a path cannot be called so, in words; None where it can."""
    if not name.strip():
        return "it is empty"
    if name in (".", ".."):
        return "it is a folder already"
    if name != name.strip():
        return "it begins or ends with a space"
    if not name.isprintable():
        return f"it has a sign that cannot be seen ({next(repr(sign) for sign in name if not sign.isprintable())})"
    if found := [sign for sign in name if sign in _UNFIT]:
        return f"it has {found[0]!r}, and {_UNFIT[found[0]]}"
    if name[0] == "-":
        return "it begins with '-', as options do"
    if name[-1] == ".":
        return "it ends with '.', which Windows leaves out"
    if _TAKEN.fullmatch(name):
        return "Windows has a device of that name"
    if len(name.encode("utf-8", "surrogatepass")) > BYTES:
        return f"a part of it is longer than {BYTES} bytes"
    return None


def _short(name: str) -> str:
    return repr(name) if len(name) <= LONGEST else f"{name[:40]!r}..."
