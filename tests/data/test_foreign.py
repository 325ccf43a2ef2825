"""Tasks from data sets of torch: where labels, classes and files are found."""

import numpy as np
import pytest
import torch
from counting import Counting
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from task2vec_ext import Task2VecWarning
from task2vec_ext.data import as_task, read_labels, union


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


def test_labels_that_are_text_keep_the_order_of_the_data_sets_classes():
    task = as_task(Counting(["dog", "cat", "dog"], targets=["dog", "cat", "dog"], classes=["dog", "cat"]))
    assert (task.classes, task.labels.tolist(), task.item(1)[1]) == (("dog", "cat"), [0, 1, 0], 1)
    with pytest.raises(ValueError, match=r"expected a label of 'Counting' \(dog, cat\), got 'cow' for image 0"):
        as_task(Counting(["cow"], classes=["dog", "cat"])).item(0)


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


def test_describe_finds_the_file_through_wrappers(nested):
    from torchvision.datasets import ImageFolder

    images = ImageFolder(nested, allow_empty=True)
    task = as_task(nested)
    with pytest.warns(Task2VecWarning, match="0 is 'cats' and '.hidden'"):
        wrapped = as_task(ConcatDataset([Subset(task, [3, 2]), images]))
    assert wrapped.describe(0) == "image 0 (dogs/b.png)"
    assert wrapped.describe(2) == f"image 2 ({images.samples[0][0]})"
    assert wrapped.labels.tolist()[:2] == [1, 1]
    assert as_task(Counting([0, 1])).describe(1) == "image 1"
