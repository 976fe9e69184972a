"""Text of a model or of a person, as a page shows it: Markdown without anything that leads out of the page."""

import functools

from markdown_it import MarkdownIt
from markupsafe import Markup

DEEPEST = 6  # of HTML's headings
BELOW = 3  # headings of a text begin under those of the page

_markdown = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])
)


@functools.lru_cache(maxsize=4096)
def shown(text: str) -> Markup:
    """HTML of Markdown: markup in it is shown as it was written, as are links and images, which fetch nothing."""
    tokens = _markdown.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(DEEPEST, int(token.tag[1:]) + BELOW)}"
    return Markup(_markdown.renderer.render(tokens, _markdown.options, {}))  # escaped by the renderer
