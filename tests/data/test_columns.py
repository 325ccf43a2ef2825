import pytest
import torch
from layouts import image
from PIL import Image

from task2vec_ext import as_task
from task2vec_ext.data import ClassLabel, LabelSet

NAMES = ["dog", "cat", "owl", "cat"]


@pytest.fixture
def paths(tmp_path):
    for shade in range(4):
        image(tmp_path / f"{shade}.png", shade)
    return [str(tmp_path / f"{shade}.png") for shade in range(4)]


def check(task, labels):
    assert task.labels.tolist() == labels
    assert [(int(x[0, 0, 0]), y) for x, y in map(task.__getitem__, range(4))] == list(enumerate(labels))


@pytest.mark.parametrize("package", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize(
    "columns",
    [("path", "label"), ("image", "label"), ("file", "species"), ("n", "path", "label")],
    ids=" ".join,
)
def test_a_data_frame_of_path_and_label_is_a_task(paths, package, columns):
    table = pytest.importorskip(package)
    content = dict(zip(columns, ([0] * 4, paths, NAMES)[-len(columns) :], strict=True))
    task = as_task(table.table(content) if package == "pyarrow" else table.DataFrame(content))
    assert task.classes == ("cat", "dog", "owl")
    check(task, [1, 0, 2, 0])


def test_a_data_frame_may_be_a_part_with_numbers_for_labels(paths):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": [*paths, "gone.png"], "label": [0, 1, 1, 0, 5]}, index=[9, 7, 7, 3, 1])
    check(as_task(frame[frame["label"] < 5]), [0, 1, 1, 0])
    frame["label"] = pandas.Categorical.from_codes([0, 1, 1, 0, 0], ["z", "y"])
    check(as_task(frame.iloc[:4]), [1, 0, 0, 1])


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"file": ["a"], "kind": ["b"], "x": [1]},
            ValueError,
            r"got file, kind, x; choose two: frame\[\[PATHS, LABELS",
        ),
        ({"path": ["a"], "image": ["a"], "label": [1]}, ValueError, "got path, image, label; choose two"),
        ({"path": ["a", "b"], "label": ["x", None]}, TypeError, "at index 1; leave out images that have no label"),
        ({"path": ["a", "b"], "label": [1.0, None]}, TypeError, r"got 1.0 \(float\) at index 0; convert them to"),
        ({"path": ["gone.png"], "label": ["x"]}, ValueError, "got 1 of 1 that are not: gone.png"),
    ],
    ids=str,
)
def test_a_data_frame_that_is_not_clear_says_what_to_do(columns, error, message):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(error, match=message):
        as_task(pandas.DataFrame(columns))


@pytest.fixture
def rows():
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "name": datasets.Value("string"),
            "tags": datasets.Sequence(datasets.Value("int64")),
        }
    )
    content = {
        "id": range(4),
        "image": [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(4)],
        "label": [1, 0, 0, 1],
        "name": NAMES,
        "tags": [[0], [1], [0, 1], []],
    }
    return datasets.Dataset.from_dict(content, features=features)


def test_a_hugging_face_data_set_is_a_task(rows):
    task = as_task(rows, name="pets")
    assert (task.name, task.classes) == ("pets", ("cat", "dog"))
    check(task, [1, 0, 0, 1])
    assert task.digest() == as_task(rows).digest() != as_task(rows.select([0, 1, 2])).digest()
    check(as_task(rows.with_format("torch")), [1, 0, 0, 1])


@pytest.mark.parametrize("renamed", ["label", "species"])
def test_its_labels_may_be_text(rows, renamed):
    task = as_task(rows.select_columns(["image", "name"]).rename_column("name", renamed))
    assert task.classes == ("cat", "dog", "owl")
    check(task, [1, 0, 2, 0])


def test_its_labels_may_be_sets(rows):
    task = as_task(rows.select_columns(["image", "tags"]), target=LabelSet(2))
    assert task.item(2)[1].tolist() == [1, 1]
    with pytest.raises(TypeError, match=r"got \[0\] \(list\) at image 0"):
        as_task(rows.select_columns(["image", "tags"]), target=ClassLabel()).item(0)


def test_what_is_no_task_of_datasets_says_what_to_do(rows):
    import datasets

    with pytest.raises(TypeError, match=r"name one of its splits or columns \(train, test\)"):
        as_task(datasets.DatasetDict({"train": rows, "test": rows}))
    with pytest.raises(TypeError, match=r"which streams; load it with streaming=False"):
        as_task(rows.to_iterable_dataset())
    with pytest.raises(TypeError, match=r"pass data_set.with_format\(None\)"):
        as_task(rows.with_transform(lambda batch: batch))
    with pytest.raises(
        ValueError, match=r"one of labels, got id \(Value\), image \(Image\), name \(Value\); choose two"
    ):
        as_task(rows.select_columns(["id", "image", "name"]))
    assert torch.equal(as_task(rows.with_transform(lambda b: b).with_format(None)).labels, as_task(rows).labels)
