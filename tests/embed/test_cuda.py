"""The way of images to a real GPU."""

import warnings

import pytest
import torch
from PIL import Image

from task2vec_ext import EmbedSettings, ImageCache, Task2VecWarning, as_task, fisher_embed, load_probe
from task2vec_ext.data import Preprocess
from task2vec_ext.embed import (
    Work,
    draw_images,
    embed_task,
    fit_task_head,
    measure_fisher,
    measure_robust_fisher,
    read_features,
)
from task2vec_ext.fisher import VariationalSettings
from task2vec_ext.probe.feed import ImageFeed, default_workers, on_device

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def probe():
    return load_probe("tiny")


def images(count):
    return as_task([(Image.effect_noise((40, 44), 20 + i).convert("RGB"), i % 2) for i in range(count)])


def test_bytes_are_normalised_to_the_same_bits():
    crops = torch.arange(256, dtype=torch.uint8).expand(2, 3, 4, 256).contiguous()
    preprocess = Preprocess()
    assert torch.equal(preprocess.normalised(crops.cuda()).cpu(), preprocess.normalised(crops))


@pytest.mark.parametrize("sizes", [(1 << 30, 0), (0, 0)], ids=["cached", "read"])
def test_batches_are_those_of_the_cpu(probe, sizes):
    task = images(40)

    def passes(device):
        with ImageFeed(task, probe, torch.device(device), 8, 2, False, ImageCache(*sizes)) as feed:
            for _ in range(2):
                with feed.batches(torch.arange(40), "test") as loaded:
                    yield [batch.images.cpu() for batch in loaded]

    with on_device(probe.module, torch.device("cuda")):
        for here, there in zip(passes("cpu"), passes("cuda"), strict=True):
            assert torch.equal(torch.cat(here), torch.cat(there))


def waits(call):
    """What a call returns, and how often it waited for the GPU."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return result, sum("synchronizing" in str(one.message) for one in told)


def waits_of_stages(probe, count, settings):
    task, device = images(count), torch.device("cuda")
    layers, indices = settings.check(probe), draw_images(task, settings)
    work = Work(device, 8, 0, progress=False)
    with on_device(probe.module, device), ImageFeed(task, probe, device, 8, 0, False, ImageCache()) as feed:
        seen, of_features = waits(lambda: read_features(feed, settings.loss_object, layers, indices, work))
        head, targets = fit_task_head(seen, settings, device)
        measure = measure_fisher if settings.variational is None else measure_robust_fisher
        _, of_fisher = waits(lambda: measure(feed, seen, layers, head, targets, settings))
    return of_features, of_fisher


@pytest.mark.parametrize("estimator", ["signed", "sampled", "variational"])
def test_no_stage_waits_for_the_gpu_in_every_batch(probe, estimator):
    def settings(count):
        epochs = VariationalSettings(epochs=1, epoch_samples=count) if estimator == "variational" else None
        return EmbedSettings(estimator=estimator, variational=epochs)

    waits_of_stages(probe, 32, settings(32))  # what a first call loads
    assert waits_of_stages(probe, 128, settings(128)) == waits_of_stages(probe, 32, settings(32))


def test_processes_are_the_gpus_share_of_the_cores_and_any_number_gives_the_same_bits(probe):
    assert default_workers(torch.device("cuda")) >= 1
    task = images(24)
    one, many = (fisher_embed(task, probe, device="cuda", num_workers=n, progress=False).fisher for n in (0, None))
    assert torch.equal(one, many)


@pytest.mark.parametrize("estimator", ["signed", "sampled", "exact"])
def test_cuda_graphs_give_the_same_embedding(probe, estimator):
    task, settings = images(40), EmbedSettings(estimator=estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Task2VecWarning)  # they are recorded
        plain, replayed = (
            embed_task(task, probe, settings, Work("cuda", 8, 0, progress=False, cuda_graphs=on)).fisher
            for on in (False, True)
        )
    torch.testing.assert_close(replayed, plain, rtol=1e-5, atol=1e-5 * float(plain.max()))


class Reads(torch.nn.Module):
    def forward(self, x):
        return x / x.detach().abs().max().item()


def test_a_network_that_waits_for_the_gpu_runs_without_graphs():
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), Reads(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    net = torch.nn.Sequential(*layers, torch.nn.Linear(8, 2)).eval()
    probe = load_probe(net, head="5", preprocess=Preprocess())
    with pytest.warns(Task2VecWarning, match="could not be recorded"):
        replayed = embed_task(images(40), probe, EmbedSettings(), Work("cuda", 8, 0, progress=False, cuda_graphs=True))
    plain = embed_task(images(40), probe, EmbedSettings(), Work("cuda", 8, 0, progress=False))
    torch.testing.assert_close(replayed.fisher, plain.fisher, rtol=1e-5, atol=1e-5 * float(plain.fisher.max()))
