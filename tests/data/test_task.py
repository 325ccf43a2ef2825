"""Tasks from lists, labels of every kind, and what an item may be."""

import pickle

import numpy as np
import pytest
import torch
from counting import Counting
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from task2vec_ext import Task2VecWarning
from task2vec_ext.data import Task, as_task, read_labels


def test_as_task_takes_a_list_of_paths(nested):
    task = as_task([(nested / "dogs" / "b.png", 1), (str(nested / "cats" / "z.gif"), np.int64(0))], name="mine")
    assert task.name == "mine"
    assert task.labels.tolist() == [1, 0]
    assert task.classes is None
    assert task[0][0].dtype == torch.uint8
    assert task[0][1] == 1


def test_as_task_checks_every_path_before_any_work(nested):
    pairs = [(nested.parent / "stray.png", 0), (nested / "gone.png", 1), (nested / "dogs", 1)]
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


def test_as_task_warns_of_files_with_two_labels(nested):
    cat, dog = nested / "cats" / "z.gif", nested / "dogs" / "b.png"
    with pytest.warns(Task2VecWarning, match=r'1 file with more than one label \(.*z.gif\); .*loss="multilabel"'):
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


def test_task_can_be_pickled(nested):
    for task in (
        as_task(nested),
        as_task([(nested.parent / "stray.png", 0)]),
        as_task(Counting([1, 0], targets=[1, 0])),
    ):
        copy = pickle.loads(pickle.dumps(task))
        assert isinstance(copy, Task)
        assert copy.labels.tolist() == task.labels.tolist()
        assert copy.describe(0) == task.describe(0)
