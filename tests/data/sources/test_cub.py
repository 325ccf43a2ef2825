import json
from collections import Counter

import pytest
from layouts import cub as write_cub

from task2vec_ext.data.sources import bird_taxonomy, cub, tasks_from

ALBATROSSES, BLACKBIRDS, CROW, RAVEN, LOON = (1, 2, 3), (9, 10), 29, 107, 86


def test_orders_and_families_of_songbirds_are_the_tasks(tmp_path):
    write_cub(tmp_path, [*ALBATROSSES, *BLACKBIRDS, CROW, RAVEN, LOON])
    tasks = tasks_from(f"cub:{tmp_path}")
    assert tasks.names == ("cub order Procellariiformes", "cub family Icteridae", "cub family Corvidae")
    birds = tasks[0]
    assert birds.classes == ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross")
    assert birds.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [int(birds[i][0][0, 0, 0]) for i in range(6)] == [1, 1, 2, 2, 3, 3]
    assert tasks[2].metadata["taxonomy"] == {
        "kingdom": "Animalia",
        "phylum": "Chordata",
        "class": "Aves",
        "order": "Passeriformes",
        "family": "Corvidae",
    }
    assert cub(tmp_path, level="order").names[1] == "cub order Passeriformes"


def test_splits_are_those_of_the_data_set(tmp_path):
    write_cub(tmp_path, ALBATROSSES)
    (train,), (test,), (both,) = (cub(tmp_path, split=split) for split in ("train", "test", "all"))
    assert [train.describe(i) for i in range(2)] == [
        "image 0 (images/001.Bird/0.png)",
        "image 1 (images/002.Bird/0.png)",
    ]
    assert test.describe(0) == "image 0 (images/001.Bird/1.png)"
    assert len(both) == len(train) + len(test) == 6
    with pytest.raises(ValueError, match="cub: expected split to be train, test or all, got 'val'"):
        cub(tmp_path, split="val")


def test_the_folder_above_will_do(tmp_path):
    write_cub(tmp_path / "CUB_200_2011", ALBATROSSES)
    assert cub(tmp_path).names == ("cub order Procellariiformes",)


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_a_missing_list_is_named_with_its_origin(tmp_path, file):
    write_cub(tmp_path, ALBATROSSES)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"cub: expected images.txt, .* got no {file}; .*data.caltech.edu"):
        cub(tmp_path, split="train")


def test_lists_that_disagree_are_refused(tmp_path):
    write_cub(tmp_path, ALBATROSSES)
    (tmp_path / "image_class_labels.txt").write_text("1 1\n2 1\n")
    with pytest.raises(ValueError, match=r"cub: expected image_class_labels.txt .* to list the images of images.txt"):
        cub(tmp_path)
    write_cub(tmp_path, [*ALBATROSSES, 201])
    with pytest.raises(ValueError, match=r"cub: expected classes 1…200 in .*image_class_labels.txt, got 201"):
        cub(tmp_path)


def test_the_taxonomy_has_all_classes_and_consistent_ranks():
    birds = bird_taxonomy()
    assert sorted(birds) == list(range(1, 201))
    families = {(bird.taxa["family"], bird.taxa["order"]) for bird in birds.values()}
    assert len(families) == len({family for family, _ in families}) == 37  # each in one order
    genera = {(bird.taxa["genus"], bird.taxa["family"]) for bird in birds.values()}
    assert len(genera) == len({genus for genus, _ in genera})
    orders = Counter(bird.taxa["order"] for bird in birds.values())
    assert orders["Passeriformes"] == 133
    assert sum(count > 1 for order, count in orders.items() if order != "Passeriformes") == 10  # the paper's number
    songbirds = Counter(b.taxa["family"] for b in birds.values() if b.taxa["order"] == "Passeriformes")
    assert sum(count > 1 for count in songbirds.values()) == 13


@pytest.mark.real_data
def test_the_taxonomy_agrees_with_inaturalists_own(real_data):
    """By genus: names of species have moved since 2011."""
    categories = json.loads((real_data / "inat2018_meta" / "categories2018.json").read_text())
    places = {}
    for category in categories:
        if category["class"] == "Aves":
            places.setdefault(category["genus"], set()).add((category["order"], category["family"]))
    compared = [bird for bird in bird_taxonomy().values() if len(places.get(bird.taxa["genus"], ())) == 1]
    assert len(compared) > 150
    for bird in compared:
        assert places[bird.taxa["genus"]] == {(bird.taxa["order"], bird.taxa["family"])}, bird.name
