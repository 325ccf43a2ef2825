import pickle
import sys

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from task2vec_ext.data.sources import hugging_face, tasks_from


def test_torchvisions_data_set_comes_with_its_options(tmp_path):
    (task,) = tasks_from("torchvision:FakeData?size=6&num_classes=3")
    assert (task.name, len(task)) == ("torchvision FakeData", 6)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 1, 0]}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps(data))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))

    class Unchecked(torchvision.datasets.CIFAR10):
        def _check_integrity(self):
            return True

        def _load_meta(self):
            self.classes = ["cat", "dog"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets, "CIFAR10", Unchecked)
        (task,) = tasks_from(f"torchvision:CIFAR10?root={tmp_path}&train=false")
    assert task.name == "torchvision CIFAR10 test"
    assert task.classes == ("cat", "dog")
    assert task.labels.tolist() == [0, 1, 1, 0]
    assert task.metadata == {"domain": "CIFAR10"}


def test_torchvisions_data_set_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"expected CIFAR10 with .*, got: Dataset not found.*download=true"):
        tasks_from(f"torchvision:CIFAR10?root={tmp_path}")
    with pytest.raises(ValueError, match=r"expected one of torchvision.datasets \(.*got 'CIFAR11'"):
        tasks_from("torchvision:CIFAR11")


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    features = datasets.Features(
        {"id": datasets.Value("int64"), "img": datasets.Image(), "fine": datasets.ClassLabel(names=["cat", "dog"])}
    )
    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)]
    rows = datasets.Dataset.from_dict({"id": [1, 2, 3], "img": images, "fine": [1, 0, 1]}, features=features)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([0, 1])}).save_to_disk(tmp_path / "parts")
    return tmp_path


def test_the_hubs_data_set_knows_its_labels_and_reaches_workers(saved):
    (task,) = tasks_from(f"hf:{saved / 'one'}")
    assert task.classes == ("cat", "dog")
    assert task.labels.tolist() == [1, 0, 1]
    image, label = pickle.loads(pickle.dumps(task))[2]
    assert (int(image[0, 0, 0]), label) == (2, 1)
    (test,) = tasks_from(f"hf:{saved / 'parts'}?split=test")
    assert len(test) == 2
    with pytest.raises(ValueError, match=r"got id \(Value\), img \(Image\), fine \(ClassLabel\); name them"):
        hugging_face(str(saved / "one"), label="coarse")
    with pytest.raises(ValueError, match=r"expected a split of .* \(train, test\), got 'dev'"):
        hugging_face(str(saved / "parts"), split="dev")


def test_without_datasets_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'task2vec_ext\[hf\]'"):
        tasks_from("hf:mnist")


def test_options_that_do_not_apply_to_a_saved_data_set_are_refused(saved):
    from datasets import NamedSplit, load_from_disk

    one, parts = saved / "one", saved / "parts"
    assert tasks_from(f"hf:{one}").names == (f"hf {one}",)  # no split is claimed
    assert tasks_from(f"hf:{parts}").names == (f"hf {parts} train",)
    test = saved / "test"
    load_from_disk(parts)["test"].save_to_disk(test)
    rows = load_from_disk(test)
    rows.info.splits, rows._split = None, NamedSplit("test")
    rows.save_to_disk(saved / "named")
    (task,) = tasks_from(f"hf:{saved / 'named'}?split=test")
    assert (task.name, len(task)) == (f"hf {saved / 'named'} test", 2)
    for spec, message in (
        (f"hf:{one}?split=test", "saved as one data set without splits, got 'test'; leave it out"),
        (f"hf:{saved / 'named'}?split=train", "saved as one data set of the split 'test', got 'train'"),
        (f"hf:{parts}?split=train[:10%25]", "expected a split of"),
        (f"hf:{one}?config=plain", "expected no config for"),
        (f"hf:{parts}?revision=main", "expected no revision for"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks_from(spec)


def test_labels_of_the_hub_may_be_text(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    features = datasets.Features({"image": datasets.Image(), "species": datasets.Value("string")})
    images, names = [Image.new("RGB", (4, 4))] * 3, ["owl", "cat", "owl"]
    datasets.Dataset.from_dict({"image": images, "species": names}, features=features).save_to_disk(tmp_path / "x")
    (task,) = tasks_from(f"hf:{tmp_path / 'x'}?label=species")
    assert (task.classes, task.labels.tolist(), task[2][1]) == (("cat", "owl"), [1, 0, 1], 1)
