"""sample_size.py and interval_coverage.py: estimates and intervals of a Fisher that is known."""

import pytest
import torch


def test_image_fisher_of_images_have_the_embedding_as_their_mean_and_are_kept(tmp_path, monkeypatch):
    import _image_fisher
    from cases import assert_near
    from small import Blobs, small_probe

    from task2vec_ext import EmbedSettings, HeadSettings, as_task, fisher_embed

    task, probe, one_head = (
        as_task(Blobs(n=60)),
        small_probe(),
        EmbedSettings(head=HeadSettings(l2=1e-2, cross_fit=None)),
    )
    found = _image_fisher.image_fisher(task, probe, estimator="signed", l2=1e-2, cache=tmp_path)
    assert_near(
        found.fisher.double().mean(0), fisher_embed(task, probe, settings=one_head, progress=False).fisher, 1e-5
    )
    monkeypatch.setattr(_image_fisher, "read", lambda *_: pytest.fail("computed again"))
    again = _image_fisher.image_fisher(task, probe, estimator="signed", l2=1e-2, cache=tmp_path)
    assert torch.equal(again.fisher, found.fisher)


def test_the_authors_batch_means_estimate_the_fisher_within_5_standard_errors():
    import _image_fisher
    import sample_size
    from small import Blobs, small_probe

    from task2vec_ext import as_task
    from task2vec_ext.data import Batch
    from task2vec_ext.fisher.per_sample import per_sample_fisher

    task, probe = as_task(Blobs(n=60)), small_probe()
    images = _image_fisher.read(task, probe)
    head = _image_fisher.fitted(probe, images, 1.0)
    truth = per_sample_fisher(probe, probe.layers(), head, Batch(*images), "exact").mean(0).sum()
    norms = sample_size._batch_means(probe, images, head, 200, torch.Generator().manual_seed(0)).sum(1)
    assert abs(norms.mean() - truth) < 5 * norms.std() / 200**0.5


def test_coverage_counts_intervals_that_hold_the_truth():
    import interval_coverage
    from _intervals import grouped

    random = torch.Generator().manual_seed(0)
    pools = [torch.rand(500, 30, generator=random) for _ in range(2)]
    truths = [pool.double().mean(0) for pool in pools]

    def draw(number, samples):
        return grouped(pools[number][torch.randint(500, (samples,), generator=random)])

    right = interval_coverage._count(iter([(0, 1)] * 40), truths, draw, 64)
    wrong = interval_coverage._count(iter([(0, 1)] * 40), [2 * truths[0], truths[1].flip(0)], draw, 64)
    assert right["norm"]["coverage"] > 0.8  # 95 % ± 3.4 %: more than four standard errors
    assert wrong["norm"]["coverage"] == 0
