import json
import pickle

import pytest
import torch
from layouts import SPECIES, image, inat2018

from task2vec_ext.data.sources import inaturalist, tasks_from


def shades(task):
    return [(int(image[0, 0, 0]), label) for image, label in map(task.__getitem__, range(len(task)))]


def test_orders_of_two_or_more_species_are_tasks(tmp_path):
    tasks = tasks_from(f"inat2018:{inat2018(tmp_path)}?level=order")
    assert tasks.names == ("inat2018 order Passeriformes", "inat2018 order Hymenoptera")  # "NA" is no order
    birds, bees = tasks
    assert birds.classes == ("Corvus corax", "Pica pica", "Parus major")
    assert birds.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert shades(bees) == [(40, 0), (41, 0), (50, 1), (51, 1)]
    assert birds.metadata == {
        "domain": "iNaturalist 2018",
        "rank": "order",
        "taxonomy": {"kingdom": "Animalia", "class": "Aves", "order": "Passeriformes"},
    }
    assert bees.describe(2) == "image 2 (train_val2018/Animalia/5/0.png)"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"level": "family"}, ["Corvidae", "Apidae"]),
        ({"level": "class"}, ["Aves", "Insecta", "Gastropoda"]),
        ({"level": "order", "min_images": 2}, ["Passeriformes", "Hymenoptera"]),
        ({"level": "order", "min_images": 3, "min_classes": 1}, ["Passeriformes"]),
        ({"level": "order", "min_classes": 1}, ["Passeriformes", "Anseriformes", "Hymenoptera"]),
    ],
    ids=lambda case: " ".join(map(str, case.values())) if isinstance(case, dict) else "",
)
def test_rank_and_least_numbers_choose_the_tasks(tmp_path, options, names):
    tasks = inaturalist(2018, inat2018(tmp_path), **options)
    assert [name.split()[-1] for name in tasks.names] == names


def test_a_task_file_gives_tasks_and_order(tmp_path):
    listed = [("Hymenoptera", [4, 5]), ("NA", [6, 7]), ("Anseriformes", [3]), ("Passeriformes", [2, 0])]
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{"id": i, "name": n, "species_ids": s} for i, (n, s) in enumerate(listed)]))
    tasks = inaturalist(2018, inat2018(tmp_path), tasks=str(file))
    assert [name.split()[-1] for name in tasks.names] == ["Hymenoptera", "Passeriformes"]
    assert tasks[1].classes == ("Parus major", "Corvus corax")
    file.write_text(json.dumps([{"name": "Hymenoptera", "species_ids": [6]}]))
    with pytest.raises(ValueError, match="got other ones for Hymenoptera; take the file of this year"):
        inaturalist(2018, tmp_path, tasks=str(file))


def test_taxa_of_one_name_stay_apart(tmp_path):
    inat2018(tmp_path)
    categories = json.loads((tmp_path / "categories.json").read_text())
    for category in categories:
        category["genus"] = "Iris"  # a plant and a mantis
    (tmp_path / "categories.json").write_text(json.dumps(categories))
    tasks = inaturalist(2018, tmp_path, level="genus", min_classes=2)
    assert tasks.names == ("inat2018 genus Iris (Corvidae)", "inat2018 genus Iris (Apidae)", "inat2018 genus Iris (NA)")


def test_torchvisions_layouts_give_the_same_tasks(tmp_path):
    ranks = ("Animalia", "Chordata", "Aves", "Passeriformes", "Corvidae")
    for number, species in enumerate(["Corvus_corax", "Pica_pica", "Pica_nuttalli"]):
        for i in range(2):
            image(tmp_path / "2021_train" / "_".join([f"{number:05d}", *ranks, species]) / f"{i}.png", number)
    (tmp_path / "2021_train" / "00000_Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_corax" / "x.txt").touch()
    (task,) = inaturalist(2021, tmp_path, level="family")
    assert task.name == "inat2021 family Corvidae"
    assert task.classes == ("Corvus corax", "Pica pica", "Pica nuttalli")
    assert shades(task) == [(0, 0), (0, 0), (1, 1), (1, 1), (2, 2), (2, 2)]
    (genus,) = inaturalist(2021, tmp_path, level="genus")
    assert genus.metadata["taxonomy"]["genus"] == "Pica"

    inat2018(tmp_path / "published")
    (tmp_path / "published" / "train_val2018").rename(tmp_path / "2018")
    (tmp_path / "published" / "categories.json").rename(tmp_path / "categories.json")
    with pytest.raises(ValueError, match=r"expected split=all for torchvision's layout .*, got 'train'"):
        inaturalist(2018, tmp_path)
    tasks = inaturalist(2018, tmp_path, split="all")
    assert tasks[1].classes == ("Apis mellifera", "Bombus terrestris")
    assert shades(tasks[1]) == [(40, 0), (41, 0), (50, 1), (51, 1)]


def test_a_rank_that_the_files_do_not_tell_is_refused(tmp_path):
    inat2018(tmp_path, ranks=False)
    with pytest.raises(ValueError, match=r"inat2018: expected level to be a rank .*\(supercategory\), got 'order'"):
        inaturalist(2018, tmp_path)
    (task,) = inaturalist(2018, tmp_path, level="supercategory")
    assert len(task.classes) == len(SPECIES)
    assert task.metadata["taxonomy"] == {"supercategory": "Animalia"}


def test_what_is_missing_is_named_with_its_origin(tmp_path):
    with pytest.raises(
        ValueError, match=r"inat2018: expected train2018.json in .*, got no train2018.json; .*inat_comp"
    ):
        inaturalist(2018, tmp_path)
    with pytest.raises(ValueError, match="gone, got no such folder"):
        inaturalist(2021, tmp_path / "gone")
    inat2018(tmp_path)
    (tmp_path / "train_val2018").rename(tmp_path / "images")
    with pytest.raises(ValueError, match=r"got no train_val2018/Animalia/0/0.png; name the folder that holds them"):
        inaturalist(2018, tmp_path)
    (tmp_path / "train2018.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="got no annotations, categories"):
        inaturalist(2018, tmp_path)


def test_damaged_files_and_foreign_folders_are_named(tmp_path):
    file = inat2018(tmp_path) / "train2018.json"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(
        ValueError, match=r"inat2018: expected valid JSON in .*train2018.json, got: Unterminated string"
    ):
        inaturalist(2018, tmp_path)
    image(tmp_path / "2019" / "Birds" / "Corvus corax" / "0.png")
    with pytest.raises(ValueError, match=r"expected folders SUPERCATEGORY/NUMBER in .*, got Birds/Corvus corax; lay"):
        inaturalist(2019, tmp_path, split="all")


def test_no_taxon_large_enough_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected taxa with enough categories of enough images in .*, got none"):
        inaturalist(2018, inat2018(tmp_path), min_images=9)


def test_a_task_can_be_pickled(tmp_path):
    task = inaturalist(2018, inat2018(tmp_path))[0]
    copy = pickle.loads(pickle.dumps(task))
    assert torch.equal(copy.labels, task.labels)
    assert (copy.metadata, copy.classes, copy.digest()) == (task.metadata, task.classes, task.digest())


@pytest.mark.real_data
def test_the_real_categories_give_the_papers_207_orders(real_data, tmp_path):
    """The published categories and the authors' own task file; one stand-in for all images."""
    meta = real_data / "inat2018_meta"
    categories = json.loads((meta / "categories2018.json").read_text())
    assert len(categories) == 8142
    images = [{"id": c["id"], "file_name": "train_val2018/0.jpg"} for c in categories]
    annotations = [{"id": c["id"], "image_id": c["id"], "category_id": c["id"]} for c in categories]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "train2018.json").write_text(json.dumps(content))
    image(tmp_path / "train_val2018" / "0.jpg")
    orders = inaturalist(2018, tmp_path)
    assert len(orders) == 207
    listed = inaturalist(2018, tmp_path, tasks=str(meta / "tasks.json"))
    assert sorted(listed.names) == sorted(orders.names)
    assert listed.names[:2] == ("inat2018 order Passeriformes", "inat2018 order Lepidoptera")
    sizes = [len(task.classes) for task in listed]
    assert sizes[:2] == [577, 1234]
    assert max(sizes) == 1234
    for entry in json.loads((meta / "tasks.json").read_text()):
        name = f"inat2018 order {entry['name']}"
        if name in listed.names:
            assert listed[listed.names.index(name)].classes == tuple(entry["species_names"])
    assert len(inaturalist(2018, tmp_path, level="class")) == 48


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("annotations", {"category_id": 99}, "annotations of the 8 category ids that .* lists, got category 99"),
        ("annotations", {"category_id": "0"}, "got category '0'"),
        ("annotations", {"image_id": 99}, "annotations of the 16 image ids that .* lists, got image 99"),
        (
            "annotations",
            {"category_id": None},
            "image_id and category_id in all annotations of .*, got none of category_id",
        ),
        (
            "images",
            {"file_name": None},
            r"id and file_name in all images of .*, got none of file_name in number 0: {'id'",
        ),
        ("images", {"id": None}, "got none of id in number 0"),
        ("categories", {"name": None}, "id and name in all categories of .*, got none of name in number 0"),
        ("annotations", "text", "got none of image_id, category_id in number 0: 'text'"),
        ("images", None, "a list of images in .*, got dict"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_entries_that_are_damaged_are_named(tmp_path, part, change, message):
    file = inat2018(tmp_path) / "train2018.json"
    content = json.loads(file.read_text())
    if isinstance(change, dict):
        entry = {**content[part][0], **change}
        content[part][0] = {key: value for key, value in entry.items() if value is not None}
    else:
        content[part] = {} if change is None else [change]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"inat2018: expected .*{message}"):
        inaturalist(2018, tmp_path)


def test_files_of_another_kind_are_named(tmp_path):
    inat2018(tmp_path)
    tasks = tmp_path / "tasks.json"
    tasks.write_text('[{"name": "Hymenoptera"}]')
    with pytest.raises(ValueError, match=r"name and species_ids in all tasks of .*tasks.json, got none of species_ids"):
        inaturalist(2018, tmp_path, tasks=str(tasks))
    (tmp_path / "categories.json").write_text('[{"name": "Hymenoptera"}]')
    with pytest.raises(ValueError, match=r"id and name in all categories of .*categories.json, got none of id"):
        inaturalist(2018, tmp_path)
    (tmp_path / "train2018.json").write_text("[1]")
    with pytest.raises(ValueError, match="got no images, annotations, categories"):
        inaturalist(2018, tmp_path)
