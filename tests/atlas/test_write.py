"""What the atlas says, before a browser shows it."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from families import embedding, families
from pages import data_of, images_of
from PIL import Image

from task2vec_ext import Reference, distance_matrix
from task2vec_ext.atlas import write_atlas
from task2vec_ext.atlas.neighbours import Resampled, distance_with_error, nearest_tasks
from task2vec_ext.atlas.sheets import contact_sheet
from task2vec_ext.data import as_task


def unpacked(data) -> np.ndarray:
    T = len(data["tasks"])
    levels = np.frombuffer(base64.b64decode(data["distances"]), "<u2")
    distances = np.zeros((T, T))
    distances[np.triu_indices(T, 1)] = data["low"] + levels / 65535 * (data["high"] - data["low"])
    return distances + distances.T


@pytest.mark.parametrize("distance", ["sym", "sym_scaled", "library_correlation"])
def test_the_page_holds_distances_neighbours_and_intervals(tmp_path, distance):
    tasks = families(4, 3, 3)
    how = {"reference": Reference.of(tasks)} if distance == "library_correlation" else {}
    data = data_of(write_atlas(tasks, tmp_path / "atlas", distance=distance, k=4, **how))
    expected = distance_matrix(tasks, distance, with_error=True, **how)
    # 16 bits between the smallest and the largest: half a level at most.
    np.testing.assert_allclose(unpacked(data), expected.value, atol=(data["high"] - data["low"]) / 65535)
    low, high = expected.interval()
    for i, task in enumerate(data["tasks"]):
        others = [j for j in np.argsort(expected.value[i].numpy()) if j != i][:4]
        assert [j for j, *_ in task["near"]] == others
        for j, *figures in task["near"]:
            wanted = [expected.value[i, j], low[i, j].clamp(min=0), high[i, j]]
            assert figures == pytest.approx([float(value) for value in wanted], rel=1e-4)
    assert sorted(data["order"]) == sorted(data["spread"]) == list(range(10))
    assert [data["domains"][task["domain"]]["name"] for task in data["tasks"]] == ["family 0"] * 4 + [
        "family 1"
    ] * 3 + ["family 2"] * 3
    first = data["tasks"][0]
    assert (first["name"], first["classes"], first["images"]) == (tasks[0].name, ["yes", "no"], 48)
    assert first["norm"][1] < first["norm"][0] < first["norm"][2]
    assert max(np.hypot(task["x"], task["y"]) for task in data["tasks"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("distance", "images"), [("sym", (48, 20)), ("sym_scaled", (20, 48)), ("sym", (9, 9))])
def test_one_distance_has_the_error_that_the_matrix_has(distance, images):
    tasks = [embedding(t, family=t, images=n) for t, n in enumerate(images)]
    found = distance_with_error(*(Resampled.of(task, distance, None) for task in tasks), distance)
    wanted = distance_matrix(tasks, distance, with_error=True)
    for field in dataclasses.fields(found):
        if field.name != "log":
            torch.testing.assert_close(getattr(found, field.name), getattr(wanted, field.name)[0, 1])


def test_without_error_bars_there_are_no_intervals():
    tasks = [embedding(0), embedding(1, groups=False), embedding(2)]
    near = dict(nearest_tasks(tasks, distance_matrix(tasks), 2, "sym", [2, 0, 1]))
    assert list(near) == [2, 0, 1]
    assert {one.task: one.low is None for one in near[0]} == {1: True, 2: False}


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_tasks_of_unknown_domain_are_a_page(tmp_path, count):
    data = data_of(write_atlas(families(count, domain=None), tmp_path))
    assert len(data["tasks"]) == count
    assert data["domains"] == []
    assert {task["domain"] for task in data["tasks"]} == {None}
    assert [len(task["near"]) for task in data["tasks"]] == [count - 1] * count


def test_names_cannot_leave_their_place(tmp_path):
    names = ["</script><script>alert(1)</script>", "<!--<script>", "{style}{data}", "caf\udce9", "鳥 & <b>", "\u2028"]
    tasks = [embedding(i, name=name, classes=(name, "no")) for i, name in enumerate(names)]
    page = write_atlas(tasks, tmp_path, title="</title><script>alert(2)</script>{script}")
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2  # the data and the code
    assert "<title>&lt;/title&gt;" in text
    data = data_of(page)
    assert [task["name"] for task in data["tasks"]] == names
    assert [task["classes"][0] for task in data["tasks"]] == names
    assert data["title"].endswith("{script}")


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    text = write_atlas(families(3), tmp_path).read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"'\s]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<(link|iframe|img|script src)", text)


def tiles(url) -> list[tuple[int, int, int]]:
    """Colour in the middle of each image of a sheet."""
    sheet = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))).convert("RGB")
    side = sheet.width // 3
    return [
        sheet.getpixel((x * side + side // 2, y * side + side // 2))
        for y in range(sheet.height // side)
        for x in range(3)
    ]


def is_near(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < 12  # JPEG


def test_a_sheet_shows_six_images_of_different_classes_and_skips_broken_ones():
    greys = [(label, (20 * label,) * 3) for label in range(12) for _ in range(2)]
    shown = tiles(contact_sheet(images_of("many", greys)))
    assert len(shown) == 6
    assert all(is_near(tile, (40 * i,) * 3) for i, tile in enumerate(shown))
    shown = tiles(contact_sheet(images_of("broken", greys, broken=(0, 1, 4))))
    # Both images of class 0 and the first of class 2 are broken: the second of class 2 takes its turn later.
    assert all(is_near(tile, (20 * label,) * 3) for tile, label in zip(shown, (4, 6, 8, 10, 2, 4), strict=True))
    two = [(0, (250, 0, 0)), (1, (0, 0, 250)), (0, (250, 0, 0)), (1, (0, 0, 250))]
    shown = tiles(contact_sheet(images_of("two", two)))
    assert [tile[0] > 200 for tile in shown[:4]] == [True, False, True, False]
    assert contact_sheet(images_of("none", two, broken=range(4))) is None


def test_a_page_of_200_tasks_stays_under_12_megabytes_whatever_their_images():
    class Noise(torch.utils.data.Dataset):
        targets = (0, 1, 2, 3, 4, 5)

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8), index

    sheet = contact_sheet(as_task(Noise(), name="noise"))  # nothing is larger as a JPEG
    assert len(sheet) * 200 < 11e6


def test_images_and_experts_are_matched_by_name(tmp_path):
    tasks = families(3)
    sheets = [images_of(tasks[1].name, [(0, "red"), (1, "blue")]), images_of("another", [(0, "red"), (1, "blue")])]
    experts = {tasks[2].name: [{"name": "birds", "score": 0.9}, {"name": "cars", "score": None}], "another": []}
    data = data_of(write_atlas(tasks, tmp_path, images=sheets, experts=experts))
    assert [task["sheet"] is not None for task in data["tasks"]] == [False, True, False]
    assert [task["experts"] for task in data["tasks"]] == [[], [], [["birds", 0.9], ["cars", None]]]


def test_write_atlas_refuses(tmp_path):
    with pytest.raises(ValueError, match="one or more embeddings, got none"):
        write_atlas([], tmp_path)
    with pytest.raises(ValueError, match=r"different names, got \['twin'\] more than once"):
        write_atlas([embedding(0, name="twin"), embedding(1, name="twin")], tmp_path)
    foreign = dataclasses.replace(embedding(1), probe=dataclasses.replace(embedding(1).probe, fingerprint="ff"))
    with pytest.raises(ValueError, match="differ in probe"):
        write_atlas([embedding(0), foreign], tmp_path)
    assert list(tmp_path.iterdir()) == []
