"""Pairs of HH-RLHF transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ...".

They are read turn by turn and never by the longest common prefix of the two texts, which ends inside a reply whenever
both replies begin with the same words:

- A turn starts at "Human:" or "Assistant:" after a blank line, or at the start of the text. White space around a turn
  is removed. Such a marker anywhere else ("Assistant: Human: I ...", or in the middle of a line) is text: people judged
  the reply as it stands, so the row is kept and counted. It does not become a demonstration (see `demonstration_of`).
- The reply is the last turn; all turns before it are the prompt, and must be the same in both transcripts as written.
  That comparison comes before turns are joined, because a second assistant turn on one side only is the model talking
  to itself.
- Two turns of one role in a row, in both transcripts, are joined with a blank line.
- Set aside, under the first reason that holds: a transcript that does not start with a Human turn, or does not end with
  an Assistant turn; an empty chosen or rejected reply; chosen equal to rejected; one transcript the beginning of the
  other, which is one sample cut at two places; no shared prompt (already the first turn differs); two that part before
  the last turn; a reply that follows another reply instead of a Human turn; an empty turn in the prompt.
"""

import re

from llm_rlhf.data.checks import BadRow, extract
from llm_rlhf.data.rows import Conversation

STRAY_MARKER = "role marker inside a turn kept as text"

_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_STRAY = re.compile(r"\b(?:Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> Conversation:
    """The turns of one HH transcript as written, neither joined nor checked; BadRow where it starts with no turn."""
    before, *pieces = _MARKER.split(text)
    if before.strip() or not pieces:
        raise BadRow("does not start with a Human turn", extract(text))
    return [
        {"role": _ROLE[name], "content": content.strip()}
        for name, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def stray_marker(text: str) -> re.Match[str] | None:
    """Where a role marker stands within a turn, None where none does."""
    return _STRAY.search(text)
