import unicodedata

import pytest
from layouts import image

from task2vec_ext import Task2VecWarning, as_task
from task2vec_ext.data import Unlabelled, one_vs_rest, remap, tasks_from, union


def pets(root, classes=("cats", "dogs"), images=2):
    for shade, name in enumerate(classes):
        for i in range(images):
            image(root / name / f"{i}.png", 100 * shade + i)
    return root


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
