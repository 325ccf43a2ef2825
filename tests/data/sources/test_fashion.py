import json
import pickle

import pytest
import torch
from layouts import image

from task2vec_ext import EmbedSettings, HeadSettings, Task2VecWarning, fisher_embed
from task2vec_ext.data.sources import deepfashion, imaterialist, tasks_from


@pytest.fixture
def imat(tmp_path):
    shown = {"1": ["4", "7"], "2": ["7"], "3": ["4", "7"], "5": []}
    annotations = [{"imageId": image, "labelId": labels} for image, labels in shown.items()]
    (tmp_path / "train.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    for number in shown:
        image(tmp_path / "train" / f"{number}.png", int(number))
    return tmp_path


def test_every_attribute_is_a_binary_task(imat):
    (imat / "labels.csv").write_text(
        "labelId,taskId,labelName,taskName\n4,2,Beige,color\n7,1,Dresses,category\n9,3,M,x\n"
    )
    tasks = tasks_from(f"imat2018:{imat}")
    assert tasks.names == ("imat2018 color Beige", "imat2018 category Dresses")  # nothing shows 9
    beige, dresses = tasks
    assert beige.classes == ("not color Beige", "color Beige")
    assert beige.labels.tolist() == [1, 0, 1, 0]
    assert dresses.labels.tolist() == [1, 1, 1, 0]
    assert [int(beige[i][0][0, 0, 0]) for i in range(4)] == [1, 2, 3, 5]
    assert beige[2][1] == 1
    assert beige.metadata == {"domain": "iMaterialist-Fashion 2018", "attribute": "color Beige"}
    assert beige.source.paths is dresses.source.paths  # a million paths, kept once


@pytest.mark.filterwarnings("ignore:fisher_embed. expected two images or more of each class")
def test_all_attributes_are_one_task_of_several_labels(imat, tmp_path):
    (task,) = tasks_from(f"imat2018:{imat}?multilabel=true")
    assert (task.name, task.classes) == ("imat2018", ("4", "7"))
    hot = [task[i][1] for i in range(4)]
    assert torch.stack(hot).tolist() == [[1, 1], [0, 1], [1, 1], [0, 0]]
    again = pickle.loads(pickle.dumps(task))
    assert again.digest() == task.digest()
    (fewer,) = tasks_from(f"imat2018:{imat}?multilabel=true&min_images=2")
    assert fewer.classes == ("4",)
    settings = EmbedSettings("multilabel", head=HeadSettings(cross_fit=None))
    embedding = fisher_embed(task, "tiny", settings=settings, progress=False)
    assert (embedding.head.num_outputs, embedding.classes, embedding.num_samples) == (2, ("4", "7"), 4)
    with pytest.raises((TypeError, ValueError), match="label"):
        fisher_embed(task, "tiny", progress=False)


def test_attributes_without_names_and_other_keys_are_read(imat):
    file = imat / "train.json"
    file.write_text(file.read_text().replace("imageId", "image_id").replace("labelId", "label_id"))
    assert imaterialist(imat).names == ("imat2018 4", "imat2018 7")
    assert imaterialist(imat, min_images=2).names == ("imat2018 4",)  # only one image does not show 7
    with pytest.raises(ValueError, match=r"an attribute that 3 or more of the 4 images show .* got none"):
        imaterialist(imat, min_images=3)


def test_images_that_were_not_downloaded_are_counted(imat):
    (imat / "train" / "2.png").unlink()
    with pytest.warns(Task2VecWarning, match="1 of the 4 images in train.json are not in"):
        tasks = imaterialist(imat)
    assert tasks[0].labels.tolist() == [1, 1, 0]
    for number in (1, 3, 5):
        (imat / "train" / f"{number}.png").unlink()
    with pytest.raises(ValueError, match=r"got none of the 4 that train.json lists; download them"):
        imaterialist(imat)


def test_imaterialist_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"got no train.json, train; .*imat_fashion_comp"):
        imaterialist(tmp_path)


@pytest.fixture
def fashion(tmp_path):
    (tmp_path / "Anno").mkdir()
    (tmp_path / "Eval").mkdir()
    (tmp_path / "Anno" / "list_attr_cloth.txt").write_text(
        "3\nattribute_name attribute_type\na-line 3\nart deco  1\nred 2\n"
    )
    rows = [
        ("img/A/1.png", "1 -1 -1"),
        ("img/A/2.png", "-1  1 -1"),
        ("img/B/1.png", "1 0 -1"),
        ("img/B/2.png", "-1 -1 -1"),
    ]
    (tmp_path / "Anno" / "list_attr_img.txt").write_text(
        "4\nimage_name attribute_labels\n" + "\n".join(f"{name}    {marks}" for name, marks in rows)
    )
    parts = ["train", "val", "train", "train"]
    (tmp_path / "Eval" / "list_eval_partition.txt").write_text(
        "4\nimage_name evaluation_status\n" + "\n".join(f"{r[0]} {p}" for r, p in zip(rows, parts, strict=True))
    )
    for shade, (name, _) in enumerate(rows):
        image(tmp_path / "Img" / name, shade)
    return tmp_path


def test_deepfashions_attributes_leave_unknown_images_out(fashion):
    tasks = tasks_from(f"deepfashion:{fashion}")
    assert tasks.names == ("deepfashion a-line", "deepfashion art deco")  # no image shows red
    line, deco = tasks
    assert line.labels.tolist() == [1, 0, 1, 0]
    assert deco.labels.tolist() == [0, 1, 0]
    assert [int(deco[i][0][0, 0, 0]) for i in range(3)] == [0, 1, 3]
    assert deco.describe(2) == "image 2 (img/B/2.png)"
    assert deco.metadata == {"domain": "DeepFashion", "attribute": "art deco"}


def test_deepfashions_splits(fashion):
    (task,) = deepfashion(fashion, split="train")
    assert task.labels.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="expected split to be train, val, test or all, got 'dev'"):
        deepfashion(fashion, split="dev")


def test_deepfashion_names_what_is_missing_or_damaged(fashion):
    file = fashion / "Anno" / "list_attr_img.txt"
    file.write_text(file.read_text()[:-3])
    with pytest.raises(ValueError, match=r"expected 3 marks −1, 0 or 1 in line 6 of .*, got 2: -1 -1; unpack it again"):
        deepfashion(fashion)
    (fashion / "Eval" / "list_eval_partition.txt").unlink()
    with pytest.raises(ValueError, match=r"got no Eval/list_eval_partition.txt; .*mmlab"):
        deepfashion(fashion, split="val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "a list of annotations in .*, got NoneType"),
        (
            '{"annotations": [{"imageId": "1"}]}',
            "imageId and labelId in all annotations of .*, got none of labelId",
        ),
        ('{"annotations": [{"imageId": "1", "labelId": ["x"]}]}', "lists of numbers as labels in .*'x'"),
        ('{"annotations": [{"imageId": "1", "labelId": 4}]}', "lists of numbers as labels in"),
    ],
    ids=["list", "missing", "text", "number"],
)
def test_annotations_that_are_damaged_are_named(imat, content, message):
    (imat / "train.json").write_text(content)
    with pytest.raises(ValueError, match=f"imat2018: expected .*{message}"):
        imaterialist(imat)


def test_a_label_map_of_other_columns_is_named(imat):
    (imat / "labels.csv").write_text("id,name\n4,Beige\n")
    with pytest.raises(ValueError, match=r"the columns labelId .* in .*labels.csv, got: 'labelId'; correct"):
        imaterialist(imat)
