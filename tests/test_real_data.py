"""Real images and a real ImageNet network: what the figures in the README rest on, in small."""

import json
import statistics

import pytest

from task2vec_ext import EmbedSettings, HeadSettings, as_task, distance_matrix, fisher_embed, load_probe
from task2vec_ext.distance.nearest import nearest

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


def tasks_of(folder, names, per_class):
    entries = {entry["name"]: entry for entry in json.loads((folder / "tasks.json").read_text())}
    for name in names:
        classes = list(entries[name]["classes"].values())[:6]
        yield as_task(
            [(folder / f, label) for label, files in enumerate(classes) for f in files[:per_class]], name=name
        )


@pytest.fixture(scope="module")
def probe():
    import os
    from pathlib import Path

    folder = Path(os.environ.get("TASK2VEC_REAL_DATA", "missing"))
    return load_probe("resnet18", weights=folder / "weights" / "resnet18.safetensors", image_size=64)


def test_signed_is_close_to_exact_and_sampled_is_not(real_data, probe):
    (task,) = tasks_of(real_data, ["cub_order_charadriiformes"], per_class=30)
    one_head = EmbedSettings(head=HeadSettings(l2=1e-2, cross_fit=None))
    exact = fisher_embed(task, probe, settings=one_head, estimator="exact", progress=False)
    assert exact.head.nll < 0.05  # a confident head

    def error(estimator, seed):
        other = fisher_embed(task, probe, settings=one_head, estimator=estimator, seed=seed, progress=False).fisher
        return float((other - exact.fisher).norm() / exact.fisher.norm())

    assert statistics.median(error("signed", seed) for seed in range(3)) < 0.2
    assert statistics.median(error("sampled", seed) for seed in range(3)) > 0.4


def test_tasks_of_one_domain_are_neighbours(real_data, probe):
    domains = {
        "birds": ("cub_order_anseriformes", "cub_order_charadriiformes"),
        "characters": ("omniglot_greek", "omniglot_balinese"),
        "grocery": ("grocery_fruit_apple", "grocery_fruit_melon"),
    }
    names = [name for pair in domains.values() for name in pair]
    embeddings = [fisher_embed(task, probe, progress=False) for task in tasks_of(real_data, names, per_class=10)]
    assert {len(embedding) for embedding in embeddings} == {4800}
    partners = [names[i] for i, _ in nearest(distance_matrix(embeddings, "sym_scaled"))]
    assert partners == [name for pair in domains.values() for name in reversed(pair)]
