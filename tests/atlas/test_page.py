"""The atlas in a browser: headless Chromium, from a file."""

import re

import pytest
from families import embedding, families

from task2vec_ext.atlas import write_atlas

pytestmark = pytest.mark.browser

ODD = ["<script>alert(1)</script>", "鳥 и рыба", "x" * 200, "plain"]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Ten tasks of three families; the first has experts and the second an image."""
    tasks = families(4, 3, 3)
    experts = {tasks[0].name: [{"name": "expert of birds", "score": 0.875}]}
    from pages import images_of

    sheets = [images_of(tasks[1].name, [(0, "red"), (1, "blue")])]
    return write_atlas(tasks, tmp_path_factory.mktemp("atlas"), experts=experts, images=sheets, k=3, title="Ten <b>")


# The page keeps its own names to itself; the places of tasks are found as a user finds them: by search and by colour.
def search(page, text):
    page.keyboard.press("/")
    page.keyboard.type(text)


def spots(page, canvas):
    """Centres of all patches of the palette's colours on a canvas, in the page's pixels: a task each, where lone."""
    return page.evaluate(
        """(id) => {
            const canvas = document.getElementById(id), { width, height } = canvas;
            const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
            copy.drawImage(canvas, 0, 0);
            const pixels = copy.getImageData(0, 0, width, height).data;
            const wanted = ["230,159,0", "86,180,233", "0,158,115"], seen = new Uint8Array(width * height), found = [];
            for (let start = 0; start < width * height; start++) {
              const colour = (at) => `${pixels[4 * at]},${pixels[4 * at + 1]},${pixels[4 * at + 2]}`;
              const own = wanted.indexOf(colour(start));
              if (seen[start] || own < 0) continue;
              let [n, x, y] = [0, 0, 0];
              for (const stack = [start]; stack.length; ) {
                const at = stack.pop();
                if (seen[at] || colour(at) !== wanted[own]) continue;
                seen[at] = 1;
                n++; x += at % width; y += Math.floor(at / width);
                stack.push(at + 1, at - 1, at + width, at - width);
              }
              if (n > 30) found.push({ x: x / n, y: y / n, family: own, n });
            }
            const box = canvas.getBoundingClientRect(), ratio = width / box.width;
            return found.map((spot) => ({ ...spot, x: box.left + spot.x / ratio, y: box.top + spot.y / ratio }));
        }""",
        canvas,
    )


def drawn(page, canvas="map"):
    """Waits until the canvas shows something, and returns its spots."""
    page.wait_for_function(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
    )
    return spots(page, canvas)


def test_the_map_shows_every_task_and_the_header_what_it_is(opened, atlas):
    page = opened(atlas)
    assert page.inner_text("h1") == "Ten <b>"
    assert page.inner_text("#summary") == "10 tasks"
    assert [text.split("\n")[0] for text in page.locator("#domains button").all_inner_texts()] == [
        "family 0",
        "family 1",
        "family 2",
    ]
    found = drawn(page)
    assert {spot["family"] for spot in found} == {0, 1, 2}
    assert 3 <= len(found) <= 10  # tasks that touch are one spot


def test_hover_shows_the_card_and_click_the_nearest_with_intervals(opened, atlas):
    page = opened(atlas)
    spot = drawn(page)[0]
    assert page.is_hidden("#card")
    page.mouse.move(spot["x"], spot["y"])
    card = page.inner_text("#card")
    name = card.split("\n")[0]
    assert re.match(rf"f{spot['family']}-task\d", name)
    assert "2 classes: yes, no" in card
    assert re.search(r"norm\s+[\d.,]+ \([\d.,]+ – [\d.,]+\)", card)
    page.mouse.click(spot["x"], spot["y"])
    assert page.inner_text("#panel h2") == name
    rows = page.locator("#nearest li").all_inner_texts()
    assert len(rows) == 3
    assert all(re.search(r"f\d-task\d\s+0\.\d+\s+[\d.e-]+ – [\d.e-]+", row) for row in rows)
    distances = [float(re.search(r"\n(0\.\d+)", row)[1]) for row in rows]
    assert distances == sorted(distances)
    nearest = rows[0].split("\n")[0]
    page.locator("#nearest button").first.click()
    assert page.inner_text("#panel h2") == nearest
    page.mouse.move(5, 750)
    assert page.is_hidden("#card")


def test_search_finds_names_classes_and_domains_and_shows_experts_and_images(opened, atlas):
    page = opened(atlas)
    search(page, "F0-TASK0")
    assert page.locator("#results li").all_inner_texts() == ["f0-task0\nfamily 0"]
    page.keyboard.press("Enter")
    assert page.inner_text("#panel h2") == "f0-task0"
    assert page.inner_text("#experts").split() == ["expert", "of", "birds", "0.875"]
    assert page.locator("#panel img").count() == 0
    assert page.input_value("#search") == ""
    search(page, "family 1")
    assert page.locator("#results li").count() == 3
    page.keyboard.press("Escape")
    search(page, "f0")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.inner_text("#panel h2") == "f0-task1"
    assert page.locator("#panel img").evaluate("(img) => img.complete && img.naturalWidth") == 216
    search(page, "nobody")
    assert page.inner_text("#results") == "nothing found"


def test_the_keyboard_alone_is_enough(opened, atlas):
    page = opened(atlas)
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#card strong")
    visited = {first}
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown") * 3:
        page.keyboard.press(key)
        visited.add(page.inner_text("#card strong"))
        assert page.inner_text("#status") == page.inner_text("#card strong")
    assert len(visited) >= 3
    last = page.inner_text("#card strong")
    page.keyboard.press("Enter")
    assert page.inner_text("#panel h2") == last
    page.keyboard.press("Escape")
    assert page.inner_text("#panel h2") == "Pick a task"
    before = drawn(page)
    page.keyboard.press("+")
    apart = [abs(max(s["x"] for s in some) - min(s["x"] for s in some)) for some in (before, drawn(page))]
    assert apart[1] > apart[0] * 1.1 or len(drawn(page)) != len(before)
    page.keyboard.press("0")
    assert drawn(page) == before
    page.keyboard.press("m")
    assert page.is_visible("#matrix")
    page.focus("#matrix")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert "distance" in page.inner_text("#card")
    row = page.locator("#card strong").first.inner_text()
    page.keyboard.press("Enter")
    assert page.inner_text("#panel h2") == row


def test_drag_and_wheel_move_the_map_and_are_no_clicks(opened, atlas):
    page = opened(atlas)
    before = drawn(page)
    spot = max(before, key=lambda s: s["n"])
    page.mouse.move(spot["x"], spot["y"])
    page.mouse.down()
    page.mouse.move(spot["x"] + 40, spot["y"] + 30, steps=4)
    page.mouse.up()
    page.mouse.move(5, 750)
    after = drawn(page)
    assert page.inner_text("#panel h2") == "Pick a task"
    assert any(abs(s["x"] - spot["x"] - 40) < 6 and abs(s["y"] - spot["y"] - 30) < 6 for s in after)
    page.mouse.move(600, 400)
    page.mouse.wheel(0, -400)
    zoomed = drawn(page)
    assert zoomed != after


def test_matrix_shows_pairs_and_selects_rows(opened, atlas):
    page = opened(atlas)
    page.click("#show-matrix")
    assert page.is_hidden("#map")
    drawn(page, "matrix")
    box = page.locator("#matrix").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 60)
    names = page.locator("#card strong").all_inner_texts()
    assert 1 <= len(names) <= 2
    page.mouse.down()
    page.mouse.up()
    assert page.inner_text("#panel h2") == names[0]
    assert page.inner_text("#ramp").startswith("near 0.")
    page.click("#show-map")
    assert page.is_visible("#map")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_is_the_system_s_until_the_button_is_used(opened, atlas, scheme):
    page = opened(atlas, color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}
    assert page.evaluate(ground) == colours[scheme]
    page.click("#theme")
    other = "dark" if scheme == "light" else "light"
    assert page.evaluate(ground) == colours[other]
    drawn(page)
    page.click("#theme")
    assert page.evaluate(ground) == colours[scheme]


def test_a_domain_of_the_legend_is_lit_alone(opened, atlas):
    page = opened(atlas)
    drawn(page)
    page.locator("#domains button").nth(1).click()
    page.mouse.move(5, 750)
    assert {spot["family"] for spot in drawn(page)} == {1}
    page.locator("#domains button").nth(1).click()
    assert {spot["family"] for spot in drawn(page)} == {0, 1, 2}


def test_odd_names_are_shown_as_text(opened, tmp_path):
    tasks = [embedding(i, name=name, domain=name, classes=(name, "other")) for i, name in enumerate(ODD)]
    page = opened(write_atlas(tasks, tmp_path, title=ODD[0]))
    assert page.inner_text("h1") == ODD[0]
    for name in ODD:
        search(page, name[:12])
        page.keyboard.press("Enter")
        assert page.inner_text("#panel h2") == name
        assert name in page.inner_text("#panel .classes")
    assert page.locator("script").count() == 2
    page.keyboard.press("m")
    drawn(page, "matrix")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_tasks_are_a_page(opened, tmp_path, count):
    page = opened(write_atlas(families(count, domain=None), tmp_path))
    assert page.is_hidden("#legend")
    assert page.inner_text("#summary") == ("1 task" if count == 1 else "2 tasks")
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.inner_text("#panel h2").startswith("f0-task")
    assert page.locator("#nearest li").count() == count - 1
    page.keyboard.press("m")
    drawn(page, "matrix")


def test_a_narrow_window_has_the_panel_below(opened, atlas):
    page = opened(atlas)
    page.set_viewport_size({"width": 420, "height": 800})
    stage, panel = (page.locator(what).bounding_box() for what in ("#stage", "#panel"))
    assert panel["y"] >= stage["y"] + stage["height"]
    assert stage["width"] == 420
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
