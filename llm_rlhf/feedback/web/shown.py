"""Text of a model or of a person, as a page shows it: Markdown without anything that leads out of the page."""

import functools

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

DEEPEST = 6  # of HTML's headings
BELOW = 3  # headings of a text begin under those of the page
NESTED = 40  # quotes and lists in each other, below which the reader leaves out what it finds; a list is two


def _reader(breaks: bool) -> MarkdownIt:
    found = MarkdownIt("commonmark", {"html": False, "breaks": breaks, "maxNesting": NESTED})
    return found.enable(["table", "strikethrough"]).disable(
        ["link", "image", "autolink", "reference", "html_inline", "html_block"]
    )


_reading = {breaks: _reader(breaks) for breaks in (True, False)}


@functools.lru_cache(maxsize=4096)
def shown(text: str, breaks: bool = True) -> Markup:
    """HTML of Markdown: markup in it is shown as it was written, as are links and images, which fetch nothing.

    Text that lies deeper in quotes and lists than the reader follows is shown as it is: whoever judges sees all of it.

    Args:
        breaks: a line ends where it ends in the text, as models mean it; False: as in a file that is wrapped.
    """
    reading = _reading[breaks]
    tokens = reading.parse(text)
    if any(token.nesting == 1 and token.level >= NESTED - 1 for token in tokens):
        return Markup("<p>{}</p>\n").format(Markup("<br>\n").join(map(escape, text.split("\n"))))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(DEEPEST, int(token.tag[1:]) + BELOW)}"
        _without_style(token)
    return Markup(reading.renderer.render(tokens, reading.options, {}))  # escaped by the renderer


def _without_style(token: Token) -> None:
    """A cell's alignment as a class: the page's policy forbids styles in the text."""
    if "style" in token.attrs:
        token.attrs = {"class": f"to-{str(token.attrs['style']).rpartition(':')[2].strip()}"}


def prose(text: str) -> Markup:
    """HTML of a document's Markdown."""
    return shown(text, breaks=False)
