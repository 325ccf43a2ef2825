import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from task2vec_ext import Task2VecWarning
from task2vec_ext.data import Task, as_task, read_labels, union


def _save(path: Path, grey: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), grey).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pets"
    _save(root / "dogs" / "b.png", 20)
    _save(root / "dogs" / "a.PNG", 10)
    _save(root / "cats" / "deep" / "er" / "c.bmp", 30)
    _save(root / "cats" / "z.gif", 40)
    _save(root / "cats" / ".hidden.png", 50)
    _save(root / ".hidden" / "a.png", 60)
    _save(tmp_path / "stray.png", 70)
    (root / "dogs" / "notes.txt").write_text("no image")
    return root


class Counting(Dataset):
    """Images of the index, and how many were read."""

    def __init__(self, given, **attributes):
        self.given = given
        self.read = 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        self.read += 1
        if not 0 <= index < len(self):
            raise IndexError(index)
        return torch.full((3, 2, 2), float(index)), self.given[index]


@pytest.mark.parametrize("kind", [str, Path])
def test_as_task_reads_a_folder_in_sorted_order(folder, kind):
    task = as_task(kind(folder))
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


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, [0, 5]), lambda d: ConcatDataset([d])])
@pytest.mark.parametrize(
    ("others", "warned"),
    [(("bus", "car"), True), (("bee", "ant"), True), (("ant", "bee"), False), (("ant", "bee", "cow"), False)],
)
def test_as_task_warns_where_joined_data_sets_number_their_classes_differently(wrap, others, warned):
    def part(classes):
        return Counting([0, 1, 1], targets=[0, 1, 1], classes=list(classes))

    joined = wrap(ConcatDataset([part(("ant", "bee")), part(others)]))
    if warned:
        with pytest.warns(Task2VecWarning, match=r"number their classes differently: 0 is 'ant' and .*union joins"):
            as_task(joined)
    else:
        as_task(joined)  # a warning would be an error
    apart = union([as_task(part(("ant", "bee"))), as_task(part(others))], name="both")
    assert set(apart.classes) == {"ant", "bee", *others}
    assert apart.classes[apart.labels[3]] == others[0]


def test_as_task_refuses_a_data_set_whose_classes_are_splits():
    with pytest.raises(ValueError, match=r"expected a data set of classes in 'Counting', got splits .*: train, val"):
        as_task(Counting([0, 1], targets=[0, 1], classes=["train", "val"]))


def test_as_task_survives_links_in_circles(folder):
    (folder / "cats" / "me").symlink_to(folder / "cats")
    (folder / "cats" / "deep" / "up").symlink_to(folder)
    (folder / "cats" / "twice").symlink_to(folder / "cats" / "deep")
    (folder / "loop").symlink_to(folder)
    (folder / "dogs" / "c").symlink_to("c")
    assert len(as_task(folder)) == 4


def test_as_task_follows_a_link_to_a_class_folder(folder, tmp_path):
    _save(tmp_path / "elsewhere" / "e.png", 1)
    (folder / "eels").symlink_to(tmp_path / "elsewhere")
    task = as_task(folder)
    assert task.classes == ("cats", "dogs", "eels")
    assert task.describe(4) == "image 4 (eels/e.png)"


def test_as_task_stays_readable_after_a_change_of_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
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


def test_as_task_refuses_a_path_that_is_no_folder(folder):
    with pytest.raises(ValueError, match="missing, got nothing there"):
        as_task(folder / "missing")
    with pytest.raises(ValueError, match=r"stray.png, got a file"):
        as_task(folder.parent / "stray.png")


def test_as_task_takes_a_list_of_paths(folder):
    task = as_task([(folder / "dogs" / "b.png", 1), (str(folder / "cats" / "z.gif"), np.int64(0))], name="mine")
    assert task.name == "mine"
    assert task.labels.tolist() == [1, 0]
    assert task.classes is None
    assert task[0][0].dtype == torch.uint8
    assert task[0][1] == 1


def test_as_task_checks_every_path_before_any_work(folder):
    pairs = [(folder.parent / "stray.png", 0), (folder / "gone.png", 1), (folder / "dogs", 1)]
    with pytest.raises(ValueError, match=r"got 2 of 3 that are not: .*gone.png, .*dogs; correct"):
        as_task(pairs)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([("a.png", 1.0)], r"got 1.0 \(float\)"),
        (["a.png"], "got str at index 0; give every image its label"),
        ([("a.png", 0, 1)], "got tuple of length 3 at index 0"),
        ([(torch.zeros(3, 2, 2), 0), ("a.png", 1)], "got Tensor at index 0; make them all of one kind"),
        ([(5, 0)], "got int at index 0"),
        ({"a.png": 0}, "got dict of length 1; pass pairs"),
        (torch.zeros(4, 3, 2, 2), "got Tensor; pass pairs"),
        (iter([("a.png", 0)]), "got list_iterator; give it __len__"),
        (None, "got NoneType"),
        (
            DataLoader(TensorDataset(torch.zeros(2), torch.zeros(2))),
            "got DataLoader; pass the data set inside",
        ),
        (type("Stream", (IterableDataset,), {"__iter__": iter})(), "got Stream; pass a map-style data set"),
    ],
    ids=lambda case: case if isinstance(case, str) else type(case).__name__,
)
def test_as_task_refuses_other_sources_and_says_what_to_do(source, message):
    with pytest.raises(TypeError, match=rf"as_task: expected .*{message}"):
        as_task(source)


NAMES = ["dog", "cat", "owl", "cat"]


@pytest.mark.parametrize(
    "source",
    [
        [(Image.new("L", (2, 2), i), name) for i, name in enumerate(NAMES)],
        Counting(NAMES, targets=NAMES),
        Counting(NAMES, labels=np.array(NAMES)),
        Counting(NAMES),
        Subset(Counting(NAMES, targets=NAMES), range(4)),
        ConcatDataset([Counting(NAMES[:1] * 2, targets=NAMES[:1] * 2), Counting(NAMES[1:], targets=NAMES[1:])]),
        [(Image.new("L", (2, 2)), name) for name in ("dog", " cat", "owl", "cat ")],
    ],
    ids=["list", "targets", "array", "items", "subset", "concat", "blanks"],
)
def test_labels_that_are_text_become_classes_in_sorted_order(source):
    task = as_task(source)
    expected = [1, 1, 0, 2, 0] if isinstance(source, ConcatDataset) else [1, 0, 2, 0]
    assert read_labels(task).tolist() == expected
    assert task.classes == ("cat", "dog", "owl")
    assert [task.item(i)[1] for i in range(len(task))] == expected


def test_labels_that_are_text_keep_the_order_of_the_data_sets_classes():
    task = as_task(Counting(["dog", "cat", "dog"], targets=["dog", "cat", "dog"], classes=["dog", "cat"]))
    assert (task.classes, task.labels.tolist(), task.item(1)[1]) == (("dog", "cat"), [0, 1, 0], 1)
    with pytest.raises(ValueError, match=r"expected a label of 'Counting' \(dog, cat\), got 'cow' for image 0"):
        as_task(Counting(["cow"], classes=["dog", "cat"])).item(0)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["cat", 1], TypeError, "all text, got 1 at index 1; make all labels text, or all integers"),
        (["cat", float("nan")], TypeError, "got nan at index 1; leave out images that have no label"),
        (["cat", " "], ValueError, "got an empty text at index 1"),
        ([[1], [0]], TypeError, r"got \[1\] \(list\) at index 0; remove the extra dimension"),
        ([2**63, 0], ValueError, "got 9223372036854775808 at index 0; number the classes"),
        ([{"boxes": 1}, 0], TypeError, "make the data set return the image's class alone"),
    ],
    ids=str,
)
def test_as_task_says_what_to_do_about_labels_of_a_list(labels, error, message):
    with pytest.raises(error, match=message):
        as_task([(Image.new("L", (2, 2)), label) for label in labels])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([[0], [1]]), r"got \[2, 1\]; remove the extra dimension: labels.squeeze"),
        (torch.eye(2), r"got \[2, 2\]; pass labels.argmax"),
        (torch.eye(2, dtype=torch.int64), "pass labels.argmax"),
        (torch.ones(2, 3), r'pass loss="multilabel" \(an image has several'),
        (torch.eye(5).repeat(2, 1, 1), 'pass loss="dense" for masks'),
        (torch.tensor([0.0, 1.0]), r'convert them to integers .* or pass loss="regression"'),
        (torch.tensor([0.2, 1.5], dtype=torch.bfloat16), 'at index 0; pass loss="regression"'),
        (torch.tensor([True, False]), r"int\(label\)"),
        (torch.tensor([2**64 - 1, 0], dtype=torch.uint64), "got 18446744073709551615 at index 0"),
    ],
    ids=lambda case: str(case)[:30],
)
def test_as_task_says_what_to_do_about_labels_in_a_tensor(labels, message):
    with pytest.raises((TypeError, ValueError), match=f"as_task: expected .*{message}"):
        as_task(TensorDataset(torch.zeros(2, 3, 4, 4), labels))


def test_as_task_warns_of_files_with_two_labels(folder):
    cat, dog = folder / "cats" / "z.gif", folder / "dogs" / "b.png"
    with pytest.warns(Task2VecWarning, match=r'1 files have more than one label \(.*z.gif\); .*loss="multilabel"'):
        as_task([(cat, 0), (dog, 1), (cat, 1)])


def test_a_task_needs_a_label_for_each_image():
    with pytest.raises(ValueError, match=r"Task: expected a label for each of the 3 images of 'x', got 1"):
        Task(Counting([0, 1, 1]), name="x", labels=[2])
    assert Task(Counting([0, 1]), name="x", labels=[0, 1]).labels.tolist() == [0, 1]


@pytest.mark.parametrize("item", [None, (None, 0)], ids=["item", "image"])
def test_none_is_an_image_that_cannot_be_read(item):
    class Holes(Counting):
        def __getitem__(self, index):
            return item

    with pytest.raises(ValueError, match="expected an image from the data set, got None for image 0"):
        as_task(Holes([0, 1])).item(0)


def test_as_task_takes_a_list_of_images():
    task = as_task([(Image.new("L", (2, 2), 9), 1), (np.zeros((2, 2, 3), np.uint8), torch.tensor(0))])
    assert task.labels.tolist() == [1, 0]
    assert task[0][0].tolist() == [[[9, 9], [9, 9]]] * 3


def test_as_task_returns_a_task_as_it_is_or_under_another_name():
    task = as_task(Counting([0, 1]))
    assert as_task(task) is task
    assert as_task(task, name="other").name == "other"
    assert task.name == "Counting"


@pytest.mark.parametrize("attribute", ["targets", "labels", "_labels"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_as_task_finds_labels_without_reading_images(attribute, kind):
    dataset = Counting([1, 0, 2, 2], **{attribute: kind([1, 0, 2, 2])}, classes=["x", "y", "z"])
    task = as_task(dataset)
    assert task.labels.tolist() == [1, 0, 2, 2]
    assert task.classes == ("x", "y", "z")
    nested = as_task(Subset(ConcatDataset([dataset, Subset(dataset, np.array([3, 1]))]), [5, 4, 0]))
    assert nested.labels.tolist() == [0, 2, 1]
    assert nested.classes == ("x", "y", "z")
    assert dataset.read == 0
    assert [nested.item(i)[1] for i in range(3)] == [0, 2, 1]


@pytest.mark.parametrize(
    "dataset",
    [
        Counting([1, 0]),
        Counting([1, 0], targets=[1, 0, 1]),
        Counting([1, 0], labels=["cat", "dog"]),
        Counting([1, 0], targets=torch.zeros(2, 40, dtype=torch.int64)),
        Counting([1, 0], targets=[0, 1], target_transform=lambda label: 1 - label),
        ConcatDataset([Counting([1], targets=[1]), Counting([0])]),
    ],
    ids=["none", "length", "names", "table", "transform", "half"],
)
def test_as_task_reads_labels_where_the_data_set_does_not_list_them(dataset):
    task = as_task(dataset)
    assert task.labels is None
    labels = read_labels(task)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1, 0]


def test_as_task_finds_the_labels_of_a_tensor_dataset():
    task = as_task(TensorDataset(torch.zeros(3, 3, 2, 2), torch.tensor([0, 1, 1])))
    assert task.labels.tolist() == [0, 1, 1]
    assert task[2][1] == 1


def test_as_task_takes_no_other_tensor_of_a_tensor_dataset_for_labels():
    task = as_task(TensorDataset(torch.zeros(3, 3, 2, 2)))
    assert task.labels is None
    with pytest.raises(TypeError, match="got tuple of length 1 at image 0"):
        read_labels(task)


def test_read_labels_reads_every_item_once_and_only_if_needed():
    dataset = Counting([0, 1, 1])
    read_labels(as_task(dataset))
    assert dataset.read == 3
    listed = Counting([0, 1], targets=[0, 1])
    read_labels(as_task(listed))
    assert listed.read == 0


def test_read_labels_names_the_image_it_cannot_read():
    class Broken(Counting):
        def __getitem__(self, index):
            return super().__getitem__(index) if index else {}["gone"]

    with pytest.raises(ValueError, match="got image 0: KeyError: 'gone'; replace or remove"):
        read_labels(as_task(Broken([0, 1])))


@pytest.mark.parametrize("label", ["cat", 1.0, True, None, torch.tensor([1])], ids=repr)
def test_task_refuses_an_item_whose_label_is_no_integer(label):
    with pytest.raises(TypeError, match=r"Task: expected integer labels .* at image 1"):
        as_task(Counting([0, label]))[1]


def test_task_refuses_an_item_that_is_no_pair():
    class Triples(Counting):
        def __getitem__(self, index):
            return (*super().__getitem__(index), "extra")

    with pytest.raises(TypeError, match=r"expected pairs of \(image, label\), got tuple of length 3 at image 1"):
        as_task(Triples([0, 1]))[1]


def test_task_refuses_an_item_that_contradicts_the_listed_labels():
    with pytest.raises(ValueError, match="expected label 0 as listed by the data set, got 1 for image 1"):
        as_task(Counting([0, 1], targets=[0, 0]))[1]


def test_task_chains_a_foreign_error_and_leaves_value_errors_alone():
    class Failing(Counting):
        def __getitem__(self, index):
            raise self.given[index]

    task = as_task(Failing([RuntimeError("disk"), ValueError("mine")]))
    with pytest.raises(ValueError, match=r"^RuntimeError: disk$") as caught:
        task[0]
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match=r"^mine$"):
        task[1]


def test_task_gives_the_item_itself_where_it_is_already_preprocessed():
    normalised = torch.randn(3, 4, 4) * 3
    assert as_task([(normalised, 0)]).item(0)[0] is normalised


def test_describe_finds_the_file_through_wrappers(folder):
    from torchvision.datasets import ImageFolder

    images = ImageFolder(folder, allow_empty=True)
    task = as_task(folder)
    with pytest.warns(Task2VecWarning, match="0 is 'cats' and '.hidden'"):
        wrapped = as_task(ConcatDataset([Subset(task, [3, 2]), images]))
    assert wrapped.describe(0) == "image 0 (dogs/b.png)"
    assert wrapped.describe(2) == f"image 2 ({images.samples[0][0]})"
    assert wrapped.labels.tolist()[:2] == [1, 1]
    assert as_task(Counting([0, 1])).describe(1) == "image 1"


def test_as_task_agrees_with_torchvisions_image_folder(folder):
    from torchvision.datasets import ImageFolder

    images = ImageFolder(
        folder,
        is_valid_file=lambda path: not os.path.basename(path).startswith((".", "notes")),
        allow_empty=True,
    )
    wrapped = as_task(Subset(images, [i for i, c in enumerate(images.targets) if images.classes[c][0] != "."]))
    task = as_task(folder)
    assert wrapped.name == "ImageFolder"
    assert sorted(int(wrapped[i][0][0, 0, 0]) for i in range(4)) == sorted(int(task[i][0][0, 0, 0]) for i in range(4))


def test_task_can_be_pickled(folder):
    for task in (
        as_task(folder),
        as_task([(folder.parent / "stray.png", 0)]),
        as_task(Counting([1, 0], targets=[1, 0])),
    ):
        copy = pickle.loads(pickle.dumps(task))
        assert isinstance(copy, Task)
        assert copy.labels.tolist() == task.labels.tolist()
        assert copy.describe(0) == task.describe(0)


def test_task_reaches_a_spawned_worker(folder):
    task = as_task(folder)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        image, label = pool.apply(task.__getitem__, (3,))
    assert (int(image[0, 0, 0]), label) == (20, 1)
