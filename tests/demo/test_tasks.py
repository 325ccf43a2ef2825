import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from task2vec_ext.demo.studio import UNSEEN
from task2vec_ext.demo.tasks import demo_tasks, task_classes
from task2vec_ext.probe.tiny import TINY_SIZE


@pytest.fixture(scope="module")
def tasks():
    return demo_tasks(seed=0)


def test_there_are_many_tasks_in_several_families(tasks):
    assert len(tasks) >= 15
    assert len({task.name for task in tasks}) == len(tasks)
    families = [task.family for task in tasks]
    assert set(families) == {"handwriting", "photographs", "drawings", "textures"}
    assert min(families.count(family) for family in families) >= 5


def test_every_task_is_balanced_and_labels_fit_the_classes(tasks):
    for task in tasks:
        assert task.images.shape == (len(task), TINY_SIZE, TINY_SIZE, 3), task.name
        assert task.images.dtype == np.uint8
        assert task.labels.dtype == np.int64
        assert 150 <= len(task) <= 250, task.name
        assert 2 <= len(task.classes) <= 6, task.name
        assert len(set(task.classes)) == len(task.classes), task.name
        counts = np.bincount(task.labels)
        assert counts.tolist() == [len(task) // len(task.classes)] * len(task.classes), task.name


def test_classes_come_in_a_random_order(tasks):
    for task in tasks:
        assert len(set(task.labels[:30])) == len(task.classes), task.name


def test_images_of_a_class_differ(tasks):
    for task in tasks:
        for label in range(len(task.classes)):
            images = task.images[task.labels == label]
            assert len(np.unique(images, axis=0)) == len(images), f"{task.name}: {task.classes[label]}"


def test_no_image_is_in_two_tasks(tasks):
    seen = [image.tobytes() for task in tasks for image in task.images]
    assert len(set(seen)) == len(seen)


def test_tasks_are_the_same_for_the_same_seed_and_others_for_another(tasks):
    few = demo_tasks(seed=3, per_class=2)
    again, other = demo_tasks(seed=3, per_class=2), demo_tasks(seed=4, per_class=2)
    for a, b, c in zip(few, again, other, strict=True):
        assert np.array_equal(a.images, b.images), a.name
        assert np.array_equal(a.labels, b.labels), a.name
        assert not np.array_equal(a.images, c.images), a.name
        assert len(a) == 2 * len(a.classes)


def test_a_task_is_a_map_style_dataset(tasks):
    task = tasks[0]
    image, label = task[7]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (TINY_SIZE, TINY_SIZE))
    assert type(label) is int
    assert label == task.targets[7] == task.labels[7]
    assert np.array_equal(np.asarray(image), task.images[7])
    with pytest.raises(IndexError):
        task[len(task)]
    batches = DataLoader(task, batch_size=64, collate_fn=lambda batch: torch.tensor([y for _, y in batch]))
    assert torch.cat(list(batches)).tolist() == task.targets


def test_each_family_has_a_task_of_kinds_the_probe_never_saw():
    for family, tasks in task_classes().items():
        for name, classes in tasks.items():
            kinds = {kind for used, _ in classes.values() for kind in used}
            if name.startswith("new "):
                assert kinds <= set(UNSEEN[family]), name
        assert any(name.startswith("new ") for name in tasks), family


@pytest.mark.parametrize("per_class", [0, -1])
def test_a_task_without_images_is_refused(per_class):
    with pytest.raises(ValueError, match="demo_tasks: expected per_class >= 1, got"):
        demo_tasks(per_class=per_class)
