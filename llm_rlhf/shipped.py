"""What ships and is no code: evaluation prompts, the gold world's base model, recipes, the tested versions.

A clone has it beside the package. A wheel has it under `share/llm-rlhf`, and where that is the installer decides: below
`sys.prefix`, or elsewhere with `pip install --user` or `--target`.
"""

import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]  # the clone; of an installed package, site-packages
PLACES = {
    "base": "data/base",
    "evaluation": "data/evaluation",
    "recipes": "recipes",
    "constraints.txt": "constraints.txt",
}
CLONE = "data/base/make.py"  # in no wheel
SHARE = Path("share", "llm-rlhf")


def shipped(name: str) -> Path:
    """The file or folder of this name, a key of PLACES; where it is nowhere, the path where pip usually puts it."""
    if (ROOT / CLONE).is_file():  # in site-packages, a folder `recipes` is another package's
        return ROOT / PLACES[name]
    usual = Path(sysconfig.get_path("data")) / SHARE / name
    return next((path for folder in _installed() if (path := folder / name).exists()), usual)


def _installed() -> Iterator[Path]:
    """Where it may be: by the installer's record, or beside the package (`--target` leaves the record wrong)."""
    try:
        files = metadata.files("llm-rlhf") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if (path := Path(str(file.locate()))).parent.parts[-2:] == SHARE.parts:
            yield path.parent
    yield ROOT / SHARE
