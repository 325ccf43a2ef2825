import itertools

import pytest
import torch
from small import Blobs, small_probe
from synthetic import task_of

from task2vec_ext import cross_diversity, distance_matrix, diversity, embed_batches


def batches_of(seeds, count, n=96):
    """Batches of a task that is a mixture: each batch is of one of its sorts, by turns."""
    return [task_of(seeds[i % len(seeds)], n=n, twin=i + 1)[0] for i in range(count)]


def test_diversity_is_the_mean_over_pairs_and_grows_with_what_a_task_is_made_of():
    plain, mixed = batches_of([1], 8), batches_of([1, 2, 3, 4], 8)
    found = diversity(mixed)
    pairs = [float(distance_matrix([a, b])[0, 1]) for a, b in itertools.combinations(mixed, 2)]
    assert float(found.value) == pytest.approx(sum(pairs) / 28)
    assert found.interval()[0] > diversity(plain).interval()[1]
    assert found.bias.abs() < 1e-12  # a mean over pairs has none


def test_cross_diversity_is_the_mean_over_pairs_and_between_alike_tasks_their_own():
    a, b, other = batches_of([1], 6), batches_of([1], 9)[6:] + batches_of([1], 12)[9:], batches_of([2], 7)
    near, far = cross_diversity(a, b), cross_diversity(a, other)
    assert float(far.value) == pytest.approx(float(distance_matrix([*a, *other])[:6, 6:].mean()))
    low, high = diversity(a).interval()
    assert low < near.value < high
    assert far.interval()[0] > high


def test_the_interval_covers_although_pairs_share_batches():
    """200 draws of 8 batches of 5 sorts: 95 % ± 1.5 %, at least 89 % is four standard errors."""
    generator = torch.Generator().manual_seed(0)
    sorts = [task_of(seed, noise=0.3)[0] for seed in range(1, 6)]
    matrix = distance_matrix(sorts)
    truth = matrix.mean()  # two batches may be of one sort
    hits = naive = 0
    for _ in range(200):
        chosen = torch.randint(5, (8,), generator=generator)
        low, high = diversity([sorts[i] for i in chosen]).interval()
        hits += bool(low <= truth <= high)
        pairs = matrix[chosen][:, chosen][tuple(torch.triu_indices(8, 8, 1))]
        naive += bool((pairs.mean() - truth).abs() < 2 * pairs.std() / 28**0.5)
    assert hits >= 0.89 * 200
    assert naive < hits


@pytest.mark.filterwarnings("ignore:fisher_embed. expected two images or more of each class")
def test_embed_batches_are_disjoint_random_and_seeded():
    taken = []

    class Watched(Blobs):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    task, probe = Watched(n=60, classes=4), small_probe()
    batches = embed_batches(task, probe, num_batches=4, images=12, progress=False)
    assert [batch.num_samples for batch in batches] == [12] * 4
    per_batch = [set(taken[i * 25 : (i + 1) * 25]) for i in range(4)]  # two passes each, one image again
    assert all(len(one) == 12 for one in per_batch)
    assert len(set().union(*per_batch)) == 48
    again, other = (embed_batches(task, probe, num_batches=4, images=12, seed=s, progress=False) for s in (0, 1))
    assert torch.equal(again[0].fisher, batches[0].fisher)
    assert not torch.equal(other[0].fisher, batches[0].fisher)
    assert 0 < diversity(batches).value < 1


@pytest.mark.filterwarnings("ignore:fisher_embed. expected two images or more of each class")
def test_a_batch_that_lacks_a_class_is_embedded_and_one_of_a_single_class_is_refused():
    probe = small_probe()
    batches = embed_batches(Blobs(n=40, classes=10), probe, num_batches=5, images=8, progress=False)
    assert {batch.head.num_outputs for batch in batches} - {8, 10} != set()
    with pytest.raises(ValueError, match=r"one in batch \d of 'Blobs'; take larger"):
        embed_batches(Blobs(n=40, classes=2), probe, num_batches=20, images=2, progress=False)


def test_too_few_images_or_batches_are_refused():
    with pytest.raises(ValueError, match="at least 16 × 64 images for disjoint batches, got 24 in 'Blobs'"):
        embed_batches(Blobs(), small_probe())
    few = batches_of([1], 3)
    with pytest.raises(ValueError, match="diversity: expected 4 batches or more, got 3"):
        diversity(few)
    with pytest.raises(ValueError, match="cross_diversity: expected 4 batches or more, got 3"):
        cross_diversity(batches_of([1], 4), few)
