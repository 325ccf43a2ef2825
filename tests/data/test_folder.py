"""Tasks from folders of images: what is a class, what is left out, what is refused."""

import os
import unicodedata
from pathlib import Path

import pytest
import torch
from layouts import image
from torch.utils.data import Subset

from task2vec_ext import Task2VecWarning, as_task
from task2vec_ext.data import Unlabelled, one_vs_rest, remap, tasks_from, union


def pets(root, classes=("cats", "dogs"), images=2):
    for shade, name in enumerate(classes):
        for i in range(images):
            image(root / name / f"{i}.png", 100 * shade + i)
    return root


@pytest.mark.parametrize("kind", [str, Path])
def test_as_task_reads_a_folder_in_sorted_order(nested, kind):
    task = as_task(kind(nested))
    assert task.name == "pets"
    assert task.classes == ("cats", "dogs")
    assert task.labels.dtype == torch.int64
    assert task.labels.tolist() == [0, 0, 1, 1]
    assert len(task) == 4
    assert [(int(image[0, 0, 0]), label) for image, label in map(task.__getitem__, range(4))] == [
        (30, 0),
        (40, 0),
        (10, 1),
        (20, 1),
    ]
    assert task[0][0].shape == (3, 3, 4)
    assert task.describe(0) == "image 0 (cats/deep/er/c.bmp)"
    assert repr(task) == "Task('pets', 4 images, 2 classes)"


def test_as_task_survives_links_in_circles(nested):
    (nested / "cats" / "me").symlink_to(nested / "cats")
    (nested / "cats" / "deep" / "up").symlink_to(nested)
    (nested / "cats" / "twice").symlink_to(nested / "cats" / "deep")
    (nested / "loop").symlink_to(nested)
    (nested / "dogs" / "c").symlink_to("c")
    assert len(as_task(nested)) == 4


def test_as_task_follows_a_link_to_a_class_folder(nested, tmp_path):
    image(tmp_path / "elsewhere" / "e.png", 1)
    (nested / "eels").symlink_to(tmp_path / "elsewhere")
    task = as_task(nested)
    assert task.classes == ("cats", "dogs", "eels")
    assert task.describe(4) == "image 4 (eels/e.png)"


def test_as_task_stays_readable_after_a_change_of_directory(nested, tmp_path, monkeypatch):
    monkeypatch.chdir(nested.parent)
    tasks = [as_task("pets"), as_task([("pets/dogs/b.png", 1), ("pets/cats/z.gif", 0)])]
    monkeypatch.chdir("/")
    assert tasks[0][3][0][0, 0, 0] == tasks[1][0][0][0, 0, 0] == 20
    assert tasks[1].describe(0) == "image 0 (pets/dogs/b.png)"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png", "b.jpg"], r"got 2 images and no folders; .*flat/cats/1.jpg"),
        ([], r"got no folders; .*flat/cats/1.jpg"),
    ],
    ids=["images", "empty"],
)
def test_as_task_shows_the_layout_it_expects(tmp_path, files, message):
    root = tmp_path / "flat"
    root.mkdir()
    for file in files:
        (root / file).touch()
    with pytest.raises(ValueError, match=f"expected a folder for each class in {root}, {message}"):
        as_task(root)


def test_as_task_refuses_a_path_that_is_no_folder(nested):
    with pytest.raises(ValueError, match="missing, got nothing there"):
        as_task(nested / "missing")
    with pytest.raises(ValueError, match=r"stray.png, got a file"):
        as_task(nested.parent / "stray.png")


def test_as_task_agrees_with_torchvisions_image_folder(nested):
    from torchvision.datasets import ImageFolder

    images = ImageFolder(
        nested,
        is_valid_file=lambda path: not os.path.basename(path).startswith((".", "notes")),
        allow_empty=True,
    )
    wrapped = as_task(Subset(images, [i for i, c in enumerate(images.targets) if images.classes[c][0] != "."]))
    task = as_task(nested)
    assert wrapped.name == "ImageFolder"
    assert sorted(int(wrapped[i][0][0, 0, 0]) for i in range(4)) == sorted(int(task[i][0][0, 0, 0]) for i in range(4))


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val"),
        ("train", "test"),
        ("Training", "Validation", "Testing"),
        ("train2017", "val2017", "unlabeled2017"),
        ("train_set", "test-set"),
        ("flowers_train", "flowers_test"),
        ("train", "val", "misc"),
        ("train",),
    ],
    ids=" ".join,
)
def test_a_folder_of_splits_is_no_task(tmp_path, names):
    pets(tmp_path / "data", [f"{name}/{pet}" for name in names for pet in ("cats", "dogs")])
    first = min(names)
    with pytest.raises(
        ValueError, match=rf"got splits of a data set: .*; name one of them \(.*data/{first}\), or join"
    ):
        as_task(tmp_path / "data")
    assert as_task(tmp_path / "data" / first).classes == ("cats", "dogs")
    assert len(tasks_from(f"{tmp_path}/data/*")) == len(names)


@pytest.mark.parametrize(
    "names", [("bus", "car", "train"), ("test tube", "train", "bus", "car"), ("valley", "trainer")]
)
def test_classes_may_be_called_like_splits(tmp_path, names):
    assert as_task(pets(tmp_path, names)).classes == tuple(sorted(names))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["cats/a.jpg_large", "cats/b.jpg_large", "dogs/c.heic"],
            "2 files .jpg_large, 1 file .heic .rename or convert",
        ),
        (["cats/0001", "cats/deep/2"], "left out 2 files without ending"),
        (["dogs/a.dcm", "dogs/a.npy", "dogs/a.mp4"], "1 file .dcm, 1 file .mp4, 1 file .npy"),
        (["dogs/a.jpeg~", "dogs/b.png.part"], "1 file .jpeg~, 1 file .part"),
        (["stray.png", "b.jpg"], r"2 images beside the class folders \(b.jpg, stray.png\)"),
        (["fish/notes.txt", "labels/0.txt"], r"folders without images \(fish, labels\)"),
    ],
    ids=lambda case: case[0] if isinstance(case, list) else "",
)
def test_what_is_left_out_of_a_folder_is_counted_by_its_ending(tmp_path, files, message):
    pets(tmp_path)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    with pytest.warns(Task2VecWarning, match=message) as caught:
        task = as_task(tmp_path)
    assert (task.classes, len(task), len(caught)) == (("cats", "dogs"), 4, 1)


def test_companions_and_junk_are_left_out_in_silence(tmp_path):
    root = pets(tmp_path / "pets")
    junk = [
        "../@eaDir",
        "@eaDir",
        "__MACOSX",
        "cats/@eaDir/0.png",
        ".thumbnails",
        "$RECYCLE.BIN",
        "#recycle",
        "lost+found",
    ]
    for folder in junk:
        image(root / folder / "SYNOPHOTO_THUMB_M.jpg")
    for file in ("README", "cats/Thumbs.db", "cats/0.xml", "dogs/0.JSON", "dogs/LICENSE", "dogs/._0.png"):
        (root / file).touch()
    assert len(as_task(root)) == 4
    assert tasks_from(f"{tmp_path}/*").names == ("pets",)


def test_a_class_whose_files_are_no_images_is_refused(tmp_path):
    pets(tmp_path)
    (tmp_path / "owls").mkdir()
    (tmp_path / "owls" / "a.heic").touch()
    with pytest.raises(
        ValueError, match=r"images in every class folder of .*, got none in owls \(1 file .heic\); rename"
    ):
        as_task(tmp_path)


def test_a_folder_without_any_image_is_refused(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match="got none in cats; "):
        as_task(tmp_path)
    (tmp_path / "cats" / "a.heic").touch()
    with pytest.raises(ValueError, match=r"a folder with images at .*, got none \(1 file .heic\)"):
        as_task(tmp_path, target=Unlabelled())


CAFE = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]


def test_names_that_look_the_same_are_told_apart(tmp_path):
    pets(tmp_path / "a", CAFE)
    if len(list((tmp_path / "a").iterdir())) < 2:
        pytest.skip("the file system makes the two names one")
    with pytest.raises(ValueError, match=r"different names, got 'cafe\\u0301' and 'caf\\xe9', which look the same"):
        as_task(tmp_path / "a")
    with pytest.raises(ValueError, match=r"expected tasks of different names, got 'cafe\\u0301' and 'caf\\xe9'"):
        tasks_from(*(str(pets(tmp_path / name)) for name in sorted(CAFE)))


@pytest.mark.parametrize(("here", "there"), [CAFE, CAFE[::-1]], ids=["nfc-nfd", "nfd-nfc"])
def test_names_are_matched_in_any_form_of_unicode(tmp_path, here, there):
    pets(tmp_path, ("bar", here))
    task = as_task(tmp_path)
    assert one_vs_rest(task, there).labels.tolist() == [0, 0, 1, 1]
    assert remap(task, {there: "x", "bar": "y"}).labels.tolist() == [1, 1, 0, 0]
    renamed = remap(task, {here: there, "bar": "bar"})
    assert union([task, renamed], name="both").labels.tolist() == [0, 0, 1, 1] * 2
    (tmp_path / "table.csv").write_text(f"path,label\n{there}/0.png,{there}\n{here}/1.png, {here}\nbar/0.png,bar\n")
    (listed,) = tasks_from(f"table:{tmp_path / 'table.csv'}")
    assert listed.classes == ("bar", CAFE[0])
    assert [(int(x[0, 0, 0]), y) for x, y in map(listed.__getitem__, range(3))] == [(100, 1), (101, 1), (0, 0)]
    assert as_task([(tmp_path / there / "0.png", 0)])[0][0][0, 0, 0] == 100
