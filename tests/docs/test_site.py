"""The site is built without a warning and works from the disk: no request leaves it, and its search finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    # The program, not -m: that would put the sources before what is installed.
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--quiet", "--strict", "--site-dir", place]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=300
    )
    assert (built.returncode, built.stderr) == (0, "")
    return place


@pytest.mark.slow
def test_pages_hold_what_lies_outside_docs(site):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    assert "Memory is the peak of one" in pages["benchmarks"]  # benchmarks/README.md
    assert 'id="fisher_pass"' in pages["benchmarks"]  # a record
    assert {"changelog", "contributing"} <= pages.keys()
    assert "task2vec library status" in (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all('href="../' not in text for text in pages.values())  # no link leads out of the site


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("page", ["index.html", "reference/data.html"])
def test_search_works_from_the_disk(site, opened, page):
    page = opened(site / page)
    page.keyboard.press("/")
    page.keyboard.type("jackknife")
    page.wait_for_selector(".md-search-result__item")
    assert "Error bars" in page.locator(".md-search-result__item h1").all_inner_texts()
