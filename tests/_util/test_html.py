import dataclasses
from html.parser import HTMLParser

import pytest

from task2vec_ext import build_library, fisher_embed
from task2vec_ext._util.html import columns, table

EVIL = "<img src=x onerror=alert(1)> & \"a\" 'b' \udcff"


class Page(HTMLParser):
    """What a browser would make of it: elements, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def library(folders, tmp_path_factory):
    return build_library(folders, tmp_path_factory.mktemp("library"), "tiny")


def test_the_card_of_an_embedding_has_its_numbers_and_a_bar_for_each_layer(folders):
    embedding = fisher_embed(folders[0], probe="tiny")
    page = Page(embedding._repr_html_())
    assert page.open == []
    for said in (embedding.name, f"{embedding.norm:.4g}", f"{embedding.head.best_score:.1%}", "held-out accuracy"):
        assert said in page.text
    assert sum(tag == "title" for tag, _ in page.tags) == len(embedding.layers)


def test_the_card_of_a_library_has_its_tasks(library):
    page = Page(library._repr_html_())
    assert page.open == []
    for entry in library.entries():
        assert entry.name in page.text
        assert f"{entry.norm:.4g}" in page.text


def test_names_are_text(folders, tmp_path):
    embedding = dataclasses.replace(fisher_embed(folders[0], probe="tiny"), name=EVIL)
    embedding = dataclasses.replace(
        embedding, layers=tuple(dataclasses.replace(one, name=f"{EVIL}{one.name}") for one in embedding.layers)
    )
    page = Page(embedding._repr_html_())
    assert {tag for tag, _ in page.tags} <= {"div", "b", "span", "svg", "rect", "title"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<img src=x onerror=alert(1)>" in page.text
    assert Page(table((EVIL, "n"), [(EVIL, "1")], [(None, 0.5)])).text.count("onerror") == 2


def test_columns_are_higher_for_more_and_none_for_nothing():
    page = Page(columns([0.0, 1e-3, 1.0], ["a", "b", "c"], "layers"))
    heights = [float(a["height"]) for tag, a in page.tags if tag == "rect" and "pointer-events" in a]
    assert heights[0] == 0 < heights[1] < heights[2] == 100
    assert Page(columns([0.0, 0.0], ["a", "b"], "dead")).open == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_card_can_be_read_in_light_and_dark(library, opened, tmp_path, scheme):
    file = tmp_path / "card.html"
    file.write_text(f"<meta charset=utf-8><style>:root{{color-scheme:light dark}}</style>{library._repr_html_()}")
    page = opened(file, color_scheme=scheme)
    bar = page.locator("td").nth(4).evaluate("cell => getComputedStyle(cell).backgroundImage")
    assert "linear-gradient" in bar
    text = page.locator("td").first.evaluate("cell => getComputedStyle(cell).color")
    assert text == ("rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)")  # the page's own
    assert page.locator("table").bounding_box()["width"] <= 700


def test_one_call_makes_a_data_frame(library, folders):
    pandas = pytest.importorskip("pandas")
    entries, near = library.entries(), library.nearest(library.names()[0])
    assert pandas.DataFrame(entries)["norm"].tolist() == [entry.norm for entry in entries]
    assert pandas.DataFrame(near)["name"].tolist() == [one.name for one in near]
    layers = pandas.DataFrame(library.embedding(library.names()[0]).layers)
    assert layers["stop"].iloc[-1] == library.made_with.filters
