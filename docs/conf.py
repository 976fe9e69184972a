"""The pages as a site: `make docs` builds it into build/docs. The same files are read on a code host as they are.

The source folder is the whole repository, so that a link from a page to another one, to the README or to a measurement
is the same path in both readings. The order of the site is that of the tables in docs/index.md, which is written once.
Nothing is fetched, neither by the build nor by its pages: formulas become MathML, which browsers set by themselves.
"""

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from pygments.lexers import JsonLexer
from sphinx.errors import SphinxError
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import llm_rlhf  # noqa: E402
from llm_rlhf.recipe.reference import comments  # noqa: E402

MANY_KEYS = (llm_rlhf.PPOConfig,)  # docs/recipe-keys.md has its fields
FUNCTION = re.compile(r"(<mi>\w+</mi>)\s*<mo>&ApplyFunction;</mo>")  # log and its like, to which browsers give no room
project = "llm-rlhf"
author = "the llm-rlhf authors"
version = release = llm_rlhf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md", "data/**.md", "examples/**.md"]
exclude_patterns = ["**/.*"]  # environments that benchmarks make beside themselves
default_role = "code"  # docstrings put names between single backticks
nitpicky = False  # types of other projects have no pages here, as nothing of theirs is fetched

myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = myst_dmath_allow_digits = False  # as on code hosts: "$5 and $6" is no formula
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # what other projects say of their methods stands in their pages
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"llm-rlhf {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_additional_pages = {"index": "to-the-start.html"}
templates_path = ["_templates"]
html_copy_source = False
html_show_sphinx = html_show_copyright = False


def order_of_the_index(app: Any, name: str, source: list[str]) -> None:
    """Every section of docs/index.md is a part of the site: the pages that it links to, in its order."""
    if name != root_doc:
        return
    for part in re.split(r"^## ", source[0], flags=re.M)[1:]:
        title = part.partition("\n")[0]
        linked = re.findall(r"\[([^]]+)\]\(([\w./-]+)\.md\)", part)
        pages = "\n".join(f"{label} <{os.path.normpath(f'/docs/{page}')}>" for label, page in linked)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n"


def linked_names(app: Any, tree: nodes.document, name: str) -> None:
    """Every dotted name of ours in a code span leads to its place in the library's reference, where it has one."""
    domain = app.env.domains.python_domain
    for span in list(tree.findall(nodes.literal)):
        known = domain.objects.get(span.astext())
        if known is not None and not isinstance(span.parent, nodes.reference):
            link = make_refnode(app.builder, name, known.docname, known.node_id, [span.deepcopy()])
            span.replace_self(link)


def plain_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, but for what is in backticks: a star is a product, a bar an absolute value.

    What a field of a record is stands in the comment beside it.
    """
    if what == "attribute" and lines and lines[0].startswith("Alias for field number"):  # of a NamedTuple
        module, _, record = name.rpartition(".")[0].rpartition(".")
        lines[:] = [comments(getattr(sys.modules[module], record))[name.rpartition(".")[2]], ""]
    if what == "class" and dataclasses.is_dataclass(obj) and "Attributes:" not in lines and obj not in MANY_KEYS:
        fields = [f"    {field}: {said}" for field, said in comments(obj).items() if said]
        lines += ["Attributes:", *fields, ""] if fields else []
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        lines[i] = "".join(part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts)


def formula(writer: Any, node: nodes.Element) -> None:
    """A formula in MathML; docutils knows the LaTeX of these pages."""
    block = isinstance(node, nodes.math_block)
    try:
        converted = latex2mathml.tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        raise SphinxError(f"{node.source}, line {node.line}: {error} in {node.astext()}") from None
    converted = FUNCTION.sub(r'<mspace width="0.17em"/>\1<mspace width="0.1em"/>', converted)
    writer.body.append(f'<div class="math">{converted}</div>' if block else converted)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_lexer("jsonl", JsonLexer)
    app.connect("source-read", order_of_the_index)
    app.connect("doctree-resolved", linked_names)
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon, which writes stars of its own
    app.add_html_math_renderer("mathml", inline_renderers=(formula, None), block_renderers=(formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
