from dataclasses import replace

import pytest
import torch
from small import Blobs, assert_untouched, small_probe, small_resnet, state_of

from task2vec_ext import Preprocess, as_task, load_probe
from task2vec_ext.data import draw
from task2vec_ext.experts.expert import save_expert
from task2vec_ext.experts.features import ExpertFeatures, Extractor
from task2vec_ext.probe.feed import ImageFeed
from task2vec_ext.selection import SELECTORS, ExpertFacts, TaskFacts


def extract(expert, task, *, num_samples=None, seed=0, **options) -> ExpertFeatures:
    """What one expert computes."""
    return Extractor({"": expert}, **options)(task, num_samples=num_samples, seed=seed)[""]


def assert_equal(one: ExpertFeatures, other: ExpertFeatures) -> None:
    for name in ("features", "probabilities", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.fixture
def reads(monkeypatch):
    """How many images of which task were read."""
    seen = []
    read = ImageFeed.batches

    def logged(self, indices, *rest):
        seen.append((self.task.name, len(indices)))
        return read(self, indices, *rest)

    monkeypatch.setattr(ImageFeed, "batches", logged)
    return seen


def test_features_and_source_probabilities_are_the_networks_own():
    data = Blobs(n=10, classes=2)
    probe = small_probe()
    before = state_of(probe.module)
    found = extract(probe, data, batch_size=4)
    assert_untouched(probe.module, before)
    with torch.no_grad():
        logits, z = probe.module(data.images), probe.features(data.images)
    # Channels-last convolutions round otherwise: 1e-7 a layer, a margin of 100.
    torch.testing.assert_close(found.features, z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.probabilities, logits.softmax(1), rtol=1e-5, atol=1e-5)
    assert found.probabilities.shape == (10, 3)  # the network's classes, not the task's
    assert found.labels.tolist() == data.targets.tolist()


def test_bfloat16_is_near(tmp_path):
    data = Blobs(n=8, classes=2)
    exact, fast = (extract(small_probe(), data, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    error = (exact.features - fast.features).norm() / exact.features.norm()
    assert 0 < error < 0.03  # 8 bits: 2^-9 a rounding, of some ten layers
    assert fast.features.dtype == torch.float32


def test_a_draw_is_the_loaders_own():
    data = Blobs(n=12)
    found = extract(small_probe(), data, num_samples=6, seed=3)
    assert found.labels.tolist() == data.targets[draw(data.targets, 6, 3)].tolist()


def test_several_experts_see_every_image_once_and_the_cache_sees_none_again(folders, tmp_path, reads):
    kinds = {"a": load_probe("tiny"), "b": load_probe("tiny", weights="random")}
    kinds["c"] = save_expert(kinds["b"], tmp_path, "c")
    first = Extractor(kinds, cache=tmp_path / "cache")(folders[0])
    assert reads == [("task0", 6)]
    assert_equal(first["b"], first["c"])  # an expert and its network are one in the cache, too
    assert len(list((tmp_path / "cache").iterdir())) == 2
    again = Extractor(kinds, cache=tmp_path / "cache")(folders[0], only=["a", "c"])
    assert len(reads) == 1
    assert list(again) == ["a", "c"]
    assert_equal(again["a"], first["a"])
    Extractor(kinds, cache=tmp_path / "cache")(folders[0], num_samples=4)
    Extractor({"a": kinds["a"]}, dtype=torch.bfloat16, cache=tmp_path / "cache")(folders[0])
    other = load_probe("tiny", preprocess=Preprocess(40, 32))
    Extractor({"a": other}, cache=tmp_path / "cache")(folders[0])
    assert reads[1:] == [("task0", 4), ("task0", 6), ("task0", 6)]  # other images, precision, preprocessing


def test_another_head_of_the_same_network_is_another_entry(folders, tmp_path, reads):
    one, other = load_probe("tiny"), load_probe("tiny")
    with torch.no_grad():
        other.module.fc.bias.add_(torch.arange(len(other.module.fc.bias)))
    assert one.fingerprint == other.fingerprint
    first, second = (extract(probe, folders[0], cache=tmp_path) for probe in (one, other))
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.probabilities, second.probabilities)


def test_experts_of_another_architecture_and_preprocessing_come_together(folders):
    from task2vec_ext import Probe

    small = Probe(small_resnet(), "fc", "small", "random", Preprocess(16, 16))
    found = Extractor({"small": small, "tiny": load_probe("tiny")})(folders[0])
    assert found["small"].features.shape == (6, 10)
    assert found["tiny"].features.shape == (6, 192)
    assert torch.equal(found["small"].labels, found["tiny"].labels)


def test_a_damaged_file_is_named(folders, tmp_path):
    extract(load_probe("tiny"), folders[0], cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"expected features in .*{file.name}, could not read"):
        extract(load_probe("tiny"), folders[0], cache=tmp_path)


def test_a_random_head_has_features_and_no_scores_of_its_outputs(folders):
    probe = replace(load_probe("tiny"), random_head=True)
    both = Extractor({"random": probe, "whole": load_probe("tiny")})(folders[0])
    assert both["random"].probabilities.shape == (6, 0)
    assert torch.equal(both["random"].features, both["whole"].features)
    task, facts = TaskFacts("task", outputs=both.__getitem__), [ExpertFacts("random"), ExpertFacts("whole")]
    for name in ("leep", "nce"):
        assert SELECTORS[name].rank(task, facts).isnan().tolist() == [True, False]
        with pytest.raises(ValueError, match="their heads are random"):
            SELECTORS[name].rank(task, facts[:1])
    first, second = SELECTORS["h_score"].rank(task, facts).tolist()
    assert first == second


def test_tasks_that_are_none_are_refused():
    with pytest.raises(ValueError, match="Extractor: expected at least two classes"):
        extract(small_probe(), as_task([(image, 0) for image, _ in Blobs(n=4)]))
    with pytest.raises(ValueError, match=r"ExpertFeatures: expected shapes \[N, D\]"):
        ExpertFeatures(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64))
