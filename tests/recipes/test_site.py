"""The pages as a site: it is built without a warning, asks nothing of the network, and has every page and name."""

import re
from pathlib import Path

import pytest
from sphinx.cmd.build import build_main
from test_recipes import LINKING, ROOT, named

ASSET = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"'](?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in this process, which has imported the package already; `make docs` gives the same options."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-c", str(ROOT / "docs")]
    assert f"sphinx {' '.join(options[:3])} -c docs . build/docs" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert build_main([*options, str(ROOT), str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in LINKING:
        assert (site / named(path)).with_suffix(".html").is_file(), named(path)
    pages = list(site.rglob("*.html"))
    assert [page.name for page in pages if ASSET.search(page.read_text(encoding="utf-8"))] == []
    styles = [path for path in site.rglob("*.css") if re.search(r"url\([\"']?(https?:)?//|@import", path.read_text())]
    assert styles == []
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_order_is_the_indexs(site: Path) -> None:
    page = (site / "docs" / "index.html").read_text(encoding="utf-8")
    told = re.findall(r'caption-text">([^<]+)<', page)
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert list(dict.fromkeys(told)) == re.findall(r"^## (.+)$", index, re.M)


@pytest.mark.slow
def test_names_lead_to_their_functions_and_formulas_are_set(site: Path) -> None:
    page = (site / "docs" / "mathematics.html").read_text(encoding="utf-8")
    assert 'href="reference/objectives.html#llm_rlhf.ppo.objectives.policy_loss"' in page
    assert page.count("<math") > 40
    assert (site / "_modules" / "llm_rlhf" / "ppo" / "objectives.html").is_file()  # the source
    records = (site / "docs" / "reference" / "data.html").read_text(encoding="utf-8")
    assert "probability that <code" in records  # the comment beside Preference.confidence
    assert "Alias for field number" not in "".join(p.read_text() for p in (site / "docs/reference").glob("*.html"))


@pytest.mark.slow
def test_pictures_come_along(site: Path) -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (site / "_images" / Path(path).name).is_file(), path
