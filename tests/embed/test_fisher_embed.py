import numpy as np
import pytest
import torch
from cases import assert_near
from small import Blobs, assert_untouched, embed, small_probe, small_resnet, state_of
from torch import nn

from task2vec_ext import (
    Embedding,
    EmbedSettings,
    Task,
    Task2VecWarning,
    as_task,
    distance_matrix,
    fisher_embed,
    load_probe,
)
from task2vec_ext.data import Batch
from task2vec_ext.embed import Work, embed_task
from task2vec_ext.embed.steps import PRIOR_SCALE
from task2vec_ext.fisher.head import fit_head
from task2vec_ext.fisher.per_sample import per_sample_fisher

TINY = load_probe("tiny")


def test_the_embedding_is_the_mean_of_the_per_sample_fisher():
    probe, blobs = small_probe(), Blobs()
    result = embed(blobs, probe, batch_size=7, head={"cross_fit": None})
    head = fit_head(probe.features(blobs.images).detach(), blobs.targets, 3)
    layers = probe.layers()
    rows = per_sample_fisher(probe, layers, head, Batch(torch.arange(24), blobs.images, blobs.targets))
    assert_near(result.fisher, rows.mean(0), 1e-6)
    assert result.layers == tuple(layers)
    assert torch.equal(result.prior, probe.prior(layers, PRIOR_SCALE))
    assert (result.num_samples, result.num_skipped, result.name) == (24, 0, "Blobs")
    assert (result.head.score, result.head.nll) == (head.score, pytest.approx(head.nll, rel=1e-5))


def test_a_folder_a_list_and_a_data_set_give_the_same_embedding(folder):
    from torchvision.datasets import ImageFolder

    paths = [(path, int(path.parent.name == "dogs")) for path in sorted(folder.rglob("*.png"))]
    results = [embed(task, TINY) for task in (folder, str(folder), paths, ImageFolder(folder))]
    for other in results[1:]:
        assert torch.equal(other.fisher, results[0].fisher)
    assert results[0].name == folder.name
    assert results[0].classes == ("cats", "dogs")


def test_same_seed_same_bits_and_another_seed_another_noise():
    first, again, other = embed(seed=1), embed(seed=1), embed(seed=2)
    assert torch.equal(first.fisher, again.fisher)
    assert not torch.equal(first.fisher, other.fisher)


def test_batch_size_and_workers_do_not_change_the_embedding(folder):
    whole = embed(folder, TINY, batch_size=16)
    for batch_size in (1, 3, 7):
        other = embed(folder, TINY, batch_size=batch_size)
        assert_near(other.fisher, whole.fisher, 1e-5)
        assert_near(other.group_means, whole.group_means, 1e-5)  # measured 1.6e-6
    for num_workers in (1, 2):
        other = embed(folder, TINY, batch_size=16, num_workers=num_workers)
        assert torch.equal(other.fisher, whole.fisher)
        assert torch.equal(other.group_means, whole.group_means)


def test_permuting_the_classes_leaves_the_exact_embedding_alone():
    blobs, permuted = Blobs(), Blobs()
    permuted.targets = torch.tensor([2, 0, 1])[permuted.targets]
    assert_near(
        embed(permuted, estimator="exact").fisher, embed(blobs, estimator="exact").fisher, 1e-3
    )  # the head's solver stops at its tolerance


def test_num_samples_draws_in_proportion_and_is_seeded():
    task = Blobs(n=60)
    some, again = (embed(task, num_samples=20, seed=3) for _ in range(2))
    assert some.num_samples == 20
    assert torch.equal(some.fisher, again.fisher)
    assert not torch.equal(some.fisher, embed(task, num_samples=20, seed=4).fisher)
    assert embed(task, num_samples=1000).num_samples == 60


def test_class_balanced_draws_take_equally_many_of_each():
    task = Blobs(n=60)
    task.targets = torch.tensor([0] * 40 + [1] * 14 + [2] * 6)
    taken = []

    class Watched(Blobs):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    task.__class__ = Watched
    embed(task, num_samples=21, head={"class_balanced": True})
    assert task.targets[sorted(set(taken))].bincount().tolist() == [8, 7, 6]


def test_options_reach_the_settings_and_keep_apart_what_cannot_be_compared(tmp_path):
    plain = embed()
    for options in (
        {"include_batchnorm": True},
        {"layers": ["layer4"]},
        {"head": {"l2": 1.0}},
        {"head": {"class_balanced": True}},
        {"head": {"method": "adam"}},
        {"head": {"cross_fit": None}},
        {"head": {"cross_fit": 10}},
        {"estimator": "empirical"},
    ):
        with pytest.raises(ValueError, match="expected embeddings made in the same way"):
            distance_matrix([plain, embed(**options)])
    same = embed(estimator="exact", seed=5, name="other")
    assert distance_matrix([plain, same])[0, 1] < 0.15  # measured 0.12: the folds depend on the seed
    same.save(tmp_path / "other.safetensors")
    assert Embedding.load(tmp_path / "other.safetensors").settings == same.settings


def test_a_module_of_ones_own_comes_back_untouched():
    probe = small_probe()
    probe.module.layer1.requires_grad_(False)
    before = state_of(probe.module)
    embed(probe=probe)
    assert_untouched(probe.module, before)


@pytest.mark.parametrize("fail_at", [5, 30], ids=["in-the-features", "in-the-fisher"])
def test_ctrl_c_leaves_the_probe_untouched_and_no_worker_behind(fail_at):
    class Interrupted(Blobs):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            if self.reads == fail_at:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    probe = small_probe()
    before = state_of(probe.module)
    with pytest.raises(KeyboardInterrupt):
        embed(Interrupted(), probe, batch_size=4)
    assert_untouched(probe.module, before)


def test_memory_beyond_the_features_does_not_grow_with_the_task():
    class Endless(torch.utils.data.Dataset):
        """Makes every image when it is asked for and counts how many are alive."""

        def __init__(self, n):
            self.targets, self.alive, self.most = torch.arange(n) % 2, 0, 0

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            import weakref

            image = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(index))
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(image, lambda: setattr(self, "alive", self.alive - 1))
            return image, index % 2

    task = Endless(200)
    embed(task, batch_size=8)
    assert task.most <= 3 * 8


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ([], ValueError, "has none|empty"),
        ([(torch.rand(3, 12, 12), 0)] * 4, ValueError, "two classes|one class"),
        ([(torch.rand(3, 12, 12), label) for label in (0, 2, 0, 2)], ValueError, "gap|never occurs|missing"),
        ([(torch.rand(3, 12, 12), label) for label in (0, -1)], ValueError, "-1"),
        ([(torch.rand(3, 12, 12), label) for label in ("cat", 1)], TypeError, "all text, got 1"),
        ("/no/such/folder", ValueError, "/no/such/folder"),
        ([("/no/such/image.png", 0)], ValueError, "image.png"),
        (42, TypeError, "int"),
    ],
    ids=["empty", "one-class", "gap", "negative", "mixed", "no-folder", "no-file", "not-a-task"],
)
def test_a_bad_task_is_refused_before_any_forward_pass(task, error, message):
    probe = small_probe()
    probe.layers()  # after a trial with noise
    probe.module.register_forward_hook(lambda *_: pytest.fail("work was done"))
    with pytest.raises(error, match=message):
        fisher_embed(task, probe, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "fisher"}, "estimator to be one of exact, signed"),
        ({"num_samples": 2}, "num_samples"),
        ({"layers": ["layer7"]}, "layer7"),
        ({"batch_size": 0}, "batch_size"),
        ({"on_error": "ignore"}, "on_error"),
        ({"head": {"l2": 0.0}}, "l2 > 0"),
        ({"head": {"method": "newton"}}, "lbfgs"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        embed(**options)


@pytest.mark.parametrize(
    "options", [{"head": {"l2": 0.0}}, {"head": {"method": "newton"}}, {"batch_size": 0}, {"on_error": "ignore"}]
)
def test_bad_options_are_refused_before_any_forward_pass(options):
    probe = small_probe()
    probe.layers()  # after a trial with noise
    probe.module.register_forward_hook(lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError):
        embed(probe=probe, **options)


def test_a_probe_in_train_mode_is_refused():
    net = small_probe().module.train()
    with pytest.raises(ValueError, match=r"call module.eval\(\) first"):
        load_probe(net, preprocess=None)


def test_a_layer_without_per_sample_gradient_is_refused_before_the_second_batch():
    net = small_resnet()
    net.layer2.forward = lambda x: nn.Sequential.forward(net.layer2, x) + net.layer1[0].conv1.weight.mean()
    seen = []
    blobs = Blobs()
    blobs.__class__ = type(
        "Watched", (Blobs,), {"__getitem__": lambda self, i: seen.append(i) or Blobs.__getitem__(self, i)}
    )
    with pytest.raises(NotImplementedError, match=r"weight of 'layer1.0.conv1' .* got it in mean"):
        embed(blobs, small_probe(net), batch_size=4)
    assert len(seen) == 4


def test_the_embedding_says_which_layer_was_the_head():
    assert embed().probe.head == "fc"


def test_a_wrapped_task_keeps_its_name():
    task = as_task(Blobs(), name="blobs")
    assert isinstance(task, Task)
    assert embed(task).name == "blobs"
    assert embed(task, name="renamed").name == "renamed"


def test_signed_is_close_to_exact_where_sampled_is_not():
    """A confident head: the figures of the issue's target are measured by benchmarks/estimators.py on a real task."""
    task = Blobs(n=60, noise=0.2)
    exact = embed(task, estimator="exact", head={"l2": 1e-3}).fisher

    def error(estimator, seed):
        other = embed(task, estimator=estimator, head={"l2": 1e-3}, seed=seed).fisher
        return float((other - exact).norm() / exact.norm())

    # Measured: signed 0.09–0.16, sampled 0.85–0.98.
    assert np.mean([error("signed", seed) for seed in range(5)]) < 0.25
    assert np.mean([error("sampled", seed) for seed in range(5)]) > 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": 1.5}, TypeError, "seed as a whole number, got 1.5"),
        ({"seed": True}, TypeError, "seed as a whole number"),
        ({"seed": 2**64}, ValueError, "seed from"),
        ({"seed": -1}, ValueError, "seed from 0"),
        ({"num_samples": 7.5}, TypeError, "num_samples as a whole number"),
        ({"num_samples": 0}, ValueError, "num_samples >= 1"),
        ({"batch_size": "3"}, TypeError, "batch_size as a whole number"),
        ({"num_workers": -1}, ValueError, "num_workers >= 0"),
        ({"layers": "layer4"}, TypeError, r"a list of names, got 'layer4'"),
        ({"layers": []}, ValueError, "at least one module"),
        ({"device": "meta"}, ValueError, "a device with memory, got 'meta'"),
        ({"device": "floppy"}, RuntimeError, "a device this machine has, got 'floppy'"),
    ],
)
def test_bad_options_name_themselves_and_leave_the_probe_alone(options, error, message):
    probe = small_probe()
    before = state_of(probe.module)
    probe.layers()  # after a trial with noise
    probe.module.register_forward_hook(lambda *_: pytest.fail("work was done"))
    before["hooks"][""] = (1, 0, 0)
    with pytest.raises(error, match=message):
        embed(probe=probe, **options)
    assert_untouched(probe.module, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preprocess": "none"}, "preprocess to be a Preprocess, None or 'weights', got 'none'"),
        ({"image_size": 0}, "image_size as a whole number of pixels >= 1, got 0"),
    ],
)
def test_bad_preprocessing_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        load_probe("tiny", **options)


def test_numpy_integers_are_integers(tmp_path):
    result = embed(seed=np.int64(3), num_samples=np.int32(12), batch_size=np.int64(5))
    result.save(tmp_path / "x.safetensors")
    assert torch.equal(result.fisher, embed(seed=3, num_samples=12, batch_size=5).fisher)


@pytest.mark.parametrize("mode", ["inference_mode", "no_grad", "autocast"])
def test_the_callers_mode_does_not_matter(mode):
    context = {
        "inference_mode": torch.inference_mode,
        "no_grad": torch.no_grad,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }[mode]
    task, probe = Blobs(), small_probe()
    with context():
        actual = embed(task, probe).fisher
        named = embed(Blobs(side=48), load_probe("tiny", preprocess=None), num_samples=6)
    assert torch.equal(actual, embed(task, probe).fisher)
    assert named.num_samples == 6


def test_a_float64_network_gives_the_same_embedding():
    narrow, wide = embed(), embed(probe=small_probe(small_probe().module.double()))
    assert_near(wide.fisher, narrow.fisher, 1e-4)


def test_adam_is_seeded_and_its_penalty_arrives():
    fits = [
        embed(head={"method": "adam", "l2": l2}, estimator="exact", seed=seed).fisher
        for seed, l2 in ((0, None), (1, None), (0, 10.0))
    ]
    assert not torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_an_embedding_of_norm_0_is_warned_of_and_named_when_compared():
    blobs = Blobs(n=12)
    blobs.images = torch.cat([blobs.images, blobs.images])
    blobs.targets = torch.arange(2).repeat_interleave(12)
    with pytest.warns(Task2VecWarning) as caught:
        same = embed(blobs, name="same", head={"cross_fit": None})
    assert "got an embedding of norm 0 for 'same'" in str(caught[-1].message)
    with pytest.raises(ValueError, match=r"'same' has entries from 0 to 0 \(norm 0: the probe saw no difference"):
        distance_matrix([embed(Blobs(), head={"cross_fit": None}), same])


@pytest.mark.parametrize("fails", [False, True])
def test_a_module_that_was_moved_comes_back_to_its_device(fails):
    from types import SimpleNamespace

    from task2vec_ext.probe.feed import on_device

    moves = []
    home, away = torch.device("cpu"), torch.device("cuda", 0)
    stub = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=home)]), to=moves.append)
    try:
        with on_device(stub, away):
            assert moves == [away]
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert moves == [away, home]


def test_the_digest_of_a_task_sees_names_sizes_and_labels(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    digest = as_task(copy).digest()
    assert digest == as_task(folder).digest()
    image = copy / "cats" / "0.png"
    image.write_bytes(image.read_bytes() + b" ")
    assert as_task(copy).digest() != digest
    pairs = [(path, path.parent.name == "dogs") for path in sorted(folder.rglob("*.png"))]
    assert (
        as_task([(path, int(dog)) for path, dog in pairs]).digest()
        != as_task([(path, int(not dog)) for path, dog in pairs]).digest()
    )
    assert as_task(Blobs()).digest() is None


def test_cuda_graphs_are_for_gpus_alone(folder):
    settings, task = EmbedSettings(), as_task(folder)
    plain, asked = (embed_task(task, TINY, settings, Work("cpu", 4, cuda_graphs=on)) for on in (False, True))
    assert torch.equal(plain.fisher, asked.fisher)
