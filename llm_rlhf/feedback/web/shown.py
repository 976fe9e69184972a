"""Text of a model or of a person, as a page shows it: Markdown without anything that leads out of the page."""

import functools

from markdown_it import MarkdownIt
from markupsafe import Markup

DEEPEST = 6  # of HTML's headings
BELOW = 3  # headings of a text begin under those of the page


def _reader(breaks: bool) -> MarkdownIt:
    found = MarkdownIt("commonmark", {"html": False, "breaks": breaks}).enable(["table", "strikethrough"])
    return found.disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])


_reading = {breaks: _reader(breaks) for breaks in (True, False)}


@functools.lru_cache(maxsize=4096)
def shown(text: str, breaks: bool = True) -> Markup:
    """HTML of Markdown: markup in it is shown as it was written, as are links and images, which fetch nothing.

    Args:
        breaks: a line ends where it ends in the text, as models mean it; False: as in a file that is wrapped.
    """
    reading = _reading[breaks]
    tokens = reading.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(DEEPEST, int(token.tag[1:]) + BELOW)}"
    return Markup(reading.renderer.render(tokens, reading.options, {}))  # escaped by the renderer


def prose(text: str) -> Markup:
    """HTML of a document's Markdown."""
    return shown(text, breaks=False)
