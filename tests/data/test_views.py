import pickle

import pytest
import torch
from layouts import image
from PIL import Image

from task2vec_ext import as_task
from task2vec_ext.data import Values, hold_out, one_vs_rest, remap, split, subset, union
from task2vec_ext.data.folder import Files


@pytest.fixture
def pets(tmp_path):
    """Image i has shade i; cats 0-3, dogs 4-6, owls 7-9."""
    shade = 0
    for name, count in (("cats", 4), ("dogs", 3), ("owls", 3)):
        for i in range(count):
            image(tmp_path / "pets" / name / f"{i}.png", shade)
            shade += 1
    return as_task(tmp_path / "pets")


@pytest.fixture
def held():
    """The same in memory, without class names."""
    labels = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    return as_task([(Image.new("L", (4, 3), i), label) for i, label in enumerate(labels)], name="held")


def shades(task):
    items = [task[i] for i in range(len(task))]
    assert [label for _, label in items] == task.labels.tolist()
    return [int(image[0, 0, 0]) for image, _ in items]


@pytest.mark.parametrize("which", ["pets", "held"])
def test_a_subset_has_its_images_in_order(request, which):
    view = subset(request.getfixturevalue(which), [9, 0, 5], name="some")
    assert view.name == "some"
    assert shades(view) == [9, 0, 5]
    assert view.labels.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="subset: expected indices in 0…2, got 3"):
        subset(view, torch.tensor([1, 3]))
    with pytest.raises(TypeError, match="turn a mask into indices"):
        subset(view, torch.tensor([True, False, True]))


@pytest.mark.parametrize("which", ["pets", "held"])
def test_a_split_has_every_class_in_both_parts(request, which):
    task = request.getfixturevalue(which)
    one, two = split(task, 0.5, seed=3)
    assert sorted(shades(one) + shades(two)) == list(range(10))
    assert torch.bincount(one.labels).tolist() in ([2, 1, 2], [2, 2, 1])
    assert set(two.labels.tolist()) == {0, 1, 2}
    assert shades(split(task, 0.5, seed=3)[0]) == shades(one)
    assert (one.name, two.name) == (f"{task.name} 1/2", f"{task.name} 2/2")
    with pytest.raises(ValueError, match="got none of class 0 in the second"):
        split(subset(task, [0, 4, 5]), 0.7)
    with pytest.raises(ValueError, match=r"expected a share between 0 and 1, got 1\.5"):
        split(task, 1.5)


def test_what_is_held_out_may_lack_a_class_but_the_rest_may_not(pets):
    few = subset(pets, [0, 4, 5])  # a cat, two dogs
    one, two = hold_out(few, 0.7)
    assert (set(one.labels.tolist()), len(two)) == (set(few.labels.tolist()), 1)


def test_remap_merges_renames_and_leaves_out(pets, held):
    view = remap(pets, {"owls": "bird", "dogs": "pet", "cats": "pet"}, name="kinds")
    assert view.classes == ("bird", "pet")
    assert view.labels.tolist() == [1] * 7 + [0] * 3
    some = remap(held, {"2": "two", "0": "zero"})
    assert some.classes == ("two", "zero")
    assert shades(some) == [0, 1, 2, 3, 7, 8, 9]
    assert some.labels.tolist() == [1, 1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"remap: expected classes of 'pets' \(cats, dogs, owls\), got 'fish'"):
        remap(pets, {"fish": "x"})


def test_one_vs_rest_is_binary(pets):
    view = one_vs_rest(pets, "dogs")
    assert (view.name, view.classes) == ("pets: dogs", ("not dogs", "dogs"))
    assert view.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_union_joins_classes_of_one_name(pets, held):
    halves = split(pets, 0.5)
    both = union([remap(halves[1], {"owls": "owls", "cats": "cats"}), halves[0]], name="all")
    assert both.classes == ("owls", "cats", "dogs")
    given = pets.labels.tolist()
    for shade, label in zip(shades(both), both.labels.tolist(), strict=True):
        assert both.classes[label] == pets.classes[given[shade]]
    assert len(union([pets, held], name="x").classes) == 6
    with pytest.raises(ValueError, match="union: expected at least one task"):
        union([], name="x")


def test_views_of_files_are_files(pets, held):
    view = union([one_vs_rest(subset(pets, [0, 4, 5]), "cats"), pets], name="both")
    assert isinstance(view.source, Files)
    assert view.digest() != pets.digest()
    assert subset(pets, range(10)).digest() == pets.digest()
    assert view.describe(1) == "image 1 (dogs/0.png)"
    mixed = union([held, subset(pets, [4])], name="mixed")
    assert mixed.digest() is None
    assert mixed.describe(10) == "image 10 (dogs/0.png)"


def test_views_nest_and_can_be_pickled(pets, held):
    for task in (pets, held):
        view = one_vs_rest(subset(task, [8, 1, 4, 5]), task.classes[1] if task.classes else "1")
        copy = pickle.loads(pickle.dumps(view))
        assert shades(copy) == shades(view) == [8, 1, 4, 5]
        assert copy.labels.tolist() == [0, 0, 1, 1]


def test_a_view_keeps_what_all_its_tasks_know_alike(pets, held):
    pets.metadata, held.metadata = {"domain": "pets", "rank": "order"}, {"domain": "pets"}
    assert subset(pets, [1]).metadata == {"domain": "pets", "rank": "order"}
    assert union([pets, held], name="x").metadata == {"domain": "pets"}


def test_views_are_of_classes_only(held):
    vectors = as_task([(held.source[0][0], [0.5, 1.0])], target=Values())
    for view in (lambda: subset(vectors, [0]), lambda: union([held, vectors], name="x")):
        with pytest.raises(TypeError, match="views: expected tasks of one class per image, got 'list' of Values"):
            view()
