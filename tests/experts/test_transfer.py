import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from small import QUICK, TRAINABLE, Blobs, small_probe, small_resnet

from task2vec_ext import Preprocess, Task, as_task
from task2vec_ext.experts import transfer as module
from task2vec_ext.experts.errors import ErrorMatrix
from task2vec_ext.experts.features import ExpertFeatures, Extractor
from task2vec_ext.experts.transfer import classifier_error, transfer_errors, transfer_gain


def blobs(name: str = "blobs", seed: int = 0, n: int = 30, noise: float = 2.0) -> Task:
    return as_task(Blobs(n=n, noise=noise, seed=seed), name=name)


def rows(features: torch.Tensor, labels: torch.Tensor) -> ExpertFeatures:
    return ExpertFeatures(features, torch.ones(len(labels), 1), labels)


@pytest.fixture
def experts():
    return {"one": small_probe(), "two": small_probe(small_resnet(seed=1))}


@pytest.fixture
def tasks():
    return [blobs(f"task{seed}", seed) for seed in range(2)]


@pytest.fixture
def measured(monkeypatch):
    """How many errors were measured."""
    calls = []
    real = classifier_error
    monkeypatch.setattr(module, "classifier_error", lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


def test_the_error_of_a_classifier_is_that_of_known_features():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    # One feature tells the classes apart but for three test images whose sign is wrong.
    z = torch.stack([labels * 2.0 - 1, torch.randn(40, generator=generator) * 1e-3], 1)
    broken = z.clone()
    broken[[1, 2, 5], 0] *= -1
    train = rows(z, labels)
    assert classifier_error(train, rows(z, labels)) == 0
    assert classifier_error(train, rows(broken, labels)) == pytest.approx(3 / 40)


def test_the_error_does_not_depend_on_the_scale_of_features():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    z = torch.randn(120, 8, generator=generator) + 0.7 * torch.nn.functional.one_hot(labels.repeat(2), 8)
    errors = [classifier_error(rows(s * z[:60], labels), rows(s * z[60:], labels)) for s in (1e-3, 1.0, 1e3)]
    assert errors[0] == errors[1] == errors[2]
    assert 0 < errors[0] < 2 / 3


def test_errors_are_of_a_classifier_on_images_it_was_not_fitted_to(experts, tasks, tmp_path):
    found = transfer_errors(experts, tasks, tmp_path / "errors.csv")
    assert (found.experts, found.tasks) == (("one", "two"), ("task0", "task1"))
    train, test = module._train_and_test(tasks[1], 0.5, 0)
    extractor = Extractor(experts)
    expected = classifier_error(extractor(train)["two"], extractor(test)["two"])
    assert float(found.column("task1")[1]) == expected
    assert not set(map(tuple, _images(train))) & set(map(tuple, _images(test)))
    on_disk = ErrorMatrix.read_csv(tmp_path / "errors.csv")
    assert torch.equal(on_disk.errors, found.errors)


def _images(task):
    return [task.item(i)[0].flatten()[:5].tolist() for i in range(len(task))]


def test_no_error_is_measured_twice_and_more_of_both_may_come(experts, tasks, tmp_path, measured):
    file = tmp_path / "errors.csv"
    first = transfer_errors({"one": experts["one"]}, tasks[:1], file)
    assert len(measured) == 1
    both = transfer_errors(experts, tasks, file)
    assert len(measured) == 4
    assert float(both.row("one")[0]) == float(first.errors[0, 0])
    part = transfer_errors({"two": experts["two"]}, tasks[1:], file)
    assert len(measured) == 4
    assert (part.experts, part.tasks) == (("two",), ("task1",))
    assert ErrorMatrix.read_csv(file).experts == ("one", "two")


def test_a_run_that_is_killed_goes_on(experts, tasks, tmp_path, measured):
    file = tmp_path / "errors.csv"
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        put = module._Table.put

        def kill(table, task, errors):
            put(table, task, errors)
            if task == "task1" and "one" in errors:
                os.kill(os.getpid(), signal.SIGKILL)

        module._Table.put = kill
        transfer_errors(experts, tasks, file)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = ErrorMatrix.read_csv(file)
    assert left.errors.isnan().tolist() == [[False, False], [False, True]]
    resumed = transfer_errors(experts, tasks, file)
    assert len(measured) == 1
    whole = transfer_errors(experts, tasks, tmp_path / "whole.csv")
    assert torch.equal(resumed.errors, whole.errors)


def test_errors_of_another_measurement_are_refused(experts, tasks, tmp_path):
    file = tmp_path / "errors.csv"
    transfer_errors(experts, tasks[:1], file)
    with pytest.raises(ValueError, match="got another for the way of measuring; remove the file"):
        transfer_errors(experts, tasks[:1], file, l2=0.5)
    with pytest.raises(ValueError, match=r"got another for two \(other weights\);"):
        transfer_errors({**experts, "two": small_probe(small_resnet(seed=2))}, tasks[:1], file)
    record = (tmp_path / "errors.csv.json").read_text()
    (tmp_path / "errors.csv.json").write_text(record.replace('"one"', '"another"'))
    with pytest.raises(ValueError, match="got another for one;"):  # its row would be lost
        transfer_errors({"two": experts["two"]}, tasks[:1], file)
    (tmp_path / "errors.csv.json").unlink()
    with pytest.raises(ValueError, match="the way of measuring"):
        transfer_errors(experts, tasks[:1], file)


def test_errors_know_all_that_decides_them(tmp_path):
    """Preprocessing of every network, and the labels of images that are no files."""
    file, task = tmp_path / "errors.csv", blobs()
    probe = small_probe()
    transfer_errors({"one": probe}, [task], file)
    smaller = replace(probe, preprocess=Preprocess(16, 16))
    with pytest.raises(ValueError, match=r"got another for one \(other preprocessing\)"):
        transfer_errors({"one": smaller}, [task], file)
    with pytest.raises(ValueError, match="got another for blobs;"):
        transfer_errors({"one": probe}, [blobs(n=24)], file)
    record = json.loads((tmp_path / "errors.csv.json").read_text())
    record["experts"]["one"] = record["experts"]["one"]["weights"]  # as version 0.2 wrote it
    (tmp_path / "errors.csv.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"got another for one \(other preprocessing\)"):
        transfer_errors({"one": probe}, [task], file)


def test_parted_tasks_and_draws_are_taken_as_they_are(experts, tmp_path):
    pair = blobs("pair", 0, n=30), blobs("pair", 0, n=12)
    transfer_errors(experts, [pair], tmp_path / "errors.csv", num_samples=6, num_test=2)
    record = json.loads((tmp_path / "errors.csv.json").read_text())
    assert list(record["tasks"]) == ["pair"]
    # Two images cannot show three classes: at least one of each is drawn.
    assert module._drawn(pair[1], 2, 0).labels.bincount().tolist() == [1, 1, 1]


def test_a_class_of_one_image_is_learned_and_not_tested(experts, tmp_path):
    images = [image for image, _ in Blobs(n=21)]
    task = as_task([*((image, 2 * (n % 2)) for n, image in enumerate(images[1:])), (images[0], 1)], name="rare")
    found = transfer_errors(experts, [task], tmp_path / "errors.csv")
    assert not found.errors.isnan().any()
    gap = as_task([(image, 2 * (n % 2)) for n, image in enumerate(images)], name="gap")
    with pytest.raises(ValueError, match="transfer_errors: gap: expected every label"):
        transfer_errors(experts, [gap], tmp_path / "errors.csv")


def test_every_expert_can_be_fine_tuned_to_every_task(tasks, tmp_path):
    experts = {str(seed): small_probe(small_resnet(seed, TRAINABLE)) for seed in range(2)}
    found = transfer_errors(experts, tasks[:1], tmp_path / "errors.csv", fine_tuning=QUICK)
    assert found.errors.shape == (2, 1)
    assert ((found.errors >= 0) & (found.errors <= 1)).all()
    with pytest.raises(ValueError, match="way of measuring"):
        transfer_errors(experts, tasks[:1], tmp_path / "errors.csv")


def test_no_experts_no_tasks_and_twins_are_refused(experts, tasks, tmp_path):
    for some, of in (({}, tasks), (experts, [])):
        with pytest.raises(ValueError, match="at least one expert and one task"):
            transfer_errors(some, of, tmp_path / "errors.csv")
    with pytest.raises(ValueError, match="different names"):
        transfer_errors(experts, [tasks[0], tasks[0]], tmp_path / "errors.csv")
    assert list(tmp_path.iterdir()) == []


def test_one_expert_is_enough(tasks, tmp_path):
    assert transfer_errors({"imagenet": small_probe()}, tasks, tmp_path / "e.csv").errors.shape == (1, 2)


def test_the_transfer_gain_is_relative_to_the_error_without_transfer():
    errors = torch.tensor([[0.4, 0.2, 0.0], [0.3, 0.3, 0.1], [math.nan, 0.1, 0.2]], dtype=torch.float64)
    matrix = ErrorMatrix(errors, ("imagenet", "a", "b"), ("a", "b", "c"))
    gain = transfer_gain(matrix)
    torch.testing.assert_close(gain[:, 1], torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64))
    assert gain[2, 0].isnan()
    assert gain[1, 2] == math.inf
    own = transfer_gain(matrix, None)
    torch.testing.assert_close(own[0, :2], torch.tensor([0.1 / 0.3, 1.0], dtype=torch.float64))
    assert own[:, 2].isnan().all()  # c has no expert
    with pytest.raises(ValueError, match="expected one of the experts"):
        transfer_gain(matrix, "d")
