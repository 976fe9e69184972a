"""Which prompts are of one wording: of one template where a prompt's facts name it, else nearly the same text."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_rlhf.data.near_duplicates import near_pairs
from llm_rlhf.data.rows import Prompt
from llm_rlhf.statistics.intervals import numbered

PHRASING = "phrasing"  # the key of `Prompt.facts` that names the template of the last user turn


class Wordings:
    """The wording of each prompt, for rows of any part of them.

    Args:
        in_order: a bootstrap draws prompts in the order given, not in that of their text.
    """

    def __init__(self, prompts: Sequence[Prompt], in_order: bool = False) -> None:
        own = np.arange(len(prompts)) if in_order else numbered(repr(prompt.messages) for prompt in prompts)
        self._prompts, self._wordings = own, numbered(wordings(prompts))

    def of(self, rows: Sequence[int] | NDArray[np.intp] | None = None) -> NDArray[np.intp]:
        """A number a row, equal where wordings are; one a prompt where no two rows share a wording."""
        chosen = np.arange(len(self._prompts)) if rows is None else np.asarray(rows, dtype=np.intp)
        found = self._wordings[chosen]
        return self._prompts[chosen] if len(np.unique(found)) == len(found) else found


def wordings(prompts: Sequence[Prompt]) -> list[str]:
    """A name a prompt: its phrasing, or the first of the prompts that it is near to, through others if need be.

    Near are texts of a similarity of .8 (data/near_duplicates.py), all turns together; equal conversations always are.
    """
    texts = ["\n".join(message["content"] for message in prompt.messages) for prompt in prompts]
    free = [text for prompt, text in zip(prompts, texts, strict=True) if PHRASING not in prompt.facts]
    near = _near(list(dict.fromkeys(free)))
    return [
        f"phrasing {prompt.facts[PHRASING]}" if PHRASING in prompt.facts else f"like {near[text]}"
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _near(texts: list[str]) -> dict[str, str]:
    """The representative of each distinct text. Representatives are compared again until no two of them are near."""
    representative = {text: text for text in texts}
    left = texts
    while pairs := near_pairs(left):
        joined = {text: text for text in left}
        for first, second, _ in pairs:
            one, other = (_root(joined, left[place]) for place in (first, second))
            joined[max(one, other)] = min(one, other)
        roots = {text: _root(joined, text) for text in left}
        representative = {text: roots[known] for text, known in representative.items()}
        left = sorted(set(roots.values()))
    return representative


def _root(joined: dict[str, str], text: str) -> str:
    while joined[text] != text:
        text = joined[text]
    return text
