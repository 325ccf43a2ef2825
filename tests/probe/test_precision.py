"""What a network computes in: float32, TF32 or bfloat16, recorded, and whatever the caller has set."""

import pytest
import torch
from cases import assert_near
from small import Blobs, assert_untouched, small_probe, small_resnet, state_of

from task2vec_ext import Embedding, EmbedSettings, as_task, build_library, distance_matrix, fisher_embed
from task2vec_ext.embed import Work
from task2vec_ext.embed.features import read_features
from task2vec_ext.losses import CrossEntropy
from task2vec_ext.probe.feed import ImageFeed
from task2vec_ext.probe.folding import FoldedProbe


def embed(task=None, probe=None, **options) -> Embedding:
    return fisher_embed(task or Blobs(), probe or small_probe(), progress=False, **options)


class Unread(Blobs):
    def __getitem__(self, index):
        raise AssertionError("read")


def test_bfloat16_is_for_the_network_alone_and_compares_with_itself():
    task, probe = Blobs(), small_probe()
    before = state_of(probe.module)
    wide, narrow = embed(task, probe, estimator="exact"), embed(task, probe, estimator="exact", dtype="bfloat16")
    assert_near(narrow.fisher, wide.fisher, 0.1)  # bfloat16 keeps 8 bits
    assert (narrow.fisher - wide.fisher).norm() > 1e-4 * wide.fisher.norm()
    assert narrow.fisher.dtype == torch.float64
    assert narrow.probe == wide.probe
    assert_untouched(probe.module, before)
    with pytest.raises(ValueError, match="dtype: float32 against bfloat16"):
        distance_matrix([wide, narrow])
    distance_matrix([narrow, embed(Blobs(seed=1), probe, dtype="bfloat16")])


def test_bfloat16_takes_a_folded_network_and_gives_bfloat16_features():
    task, probe = Blobs(), small_probe()
    seen = read_features(
        ImageFeed(as_task(task), probe.computing_in("bfloat16"), torch.device("cpu"), 8, 0, False),
        CrossEntropy(),
        probe.layers(),
        torch.arange(24),
        Work(),
    )
    assert isinstance(seen.probe, FoldedProbe)
    assert seen.probe.dtype == "bfloat16"
    features = seen.of_task.features
    assert torch.equal(features, features.bfloat16().float())


def test_tf32_and_bfloat16_are_refused_where_they_cannot_be():
    probe, refused = small_probe(), Unread()
    with pytest.raises(RuntimeError, match=r"GPU of compute capability 8.0 or later for dtype 'tf32', got cpu; pass"):
        embed(refused, probe, dtype="tf32", device="cpu")
    with pytest.raises(ValueError, match=r"float32 weights for dtype 'bfloat16', got torch.float64 in 'conv1.weight'"):
        embed(refused, small_probe(small_resnet().double()), dtype="bfloat16")
    with pytest.raises(RuntimeError, match="for dtype 'tf32', got cpu"):
        build_library([Blobs()], "nowhere", probe, settings=EmbedSettings(dtype="tf32"), device="cpu")


def test_the_callers_precision_settings_do_not_matter_and_come_back():
    places = torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul
    expected, before = embed().fisher, [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "bf16"
        assert torch.equal(embed().fisher, expected)
        assert [place.fp32_precision for place in places] == ["bf16", "bf16"]
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_every_dtype_on_a_gpu_is_near_the_cpu(dtype):
    task, probe = Blobs(), small_probe()
    expected = embed(task, probe, estimator="exact", device="cpu").fisher
    actual = embed(task, probe, estimator="exact", device="cuda", dtype=dtype).fisher
    error = float((actual - expected).norm() / expected.norm())
    assert error <= {"float32": 1e-3, "tf32": 0.02, "bfloat16": 0.1}[dtype]
