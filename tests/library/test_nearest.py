import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from small import Blobs, small_probe, small_resnet

from task2vec_ext import (
    Embedding,
    EmbedSettings,
    HeadSettings,
    Library,
    as_task,
    build_library,
    distance_matrix,
    embed_for,
    fisher_embed,
    load_embeddings,
)
from task2vec_ext.embed import embed_task
from task2vec_ext.library import build as library_build
from task2vec_ext.library import matrix as _matrix


def tasks_of(count: int, n: int = 12) -> list:
    """So many tasks in memory that differ."""
    return [as_task(Blobs(n=n, noise=0.5 + t, seed=t), name=f"task{t}") for t in range(count)]


@pytest.fixture
def built(tmp_path) -> Library:
    """Five embedded tasks in memory."""
    return build_library(tasks_of(5), tmp_path / "library", small_probe())


@pytest.mark.parametrize("distance", ["sym", "sym_scaled"])
@pytest.mark.parametrize("rows_a_block", [1, 2, 1000])
def test_the_nearest_are_those_of_the_distance_matrix(built, monkeypatch, distance, rows_a_block):
    monkeypatch.setattr(_matrix, "_BLOCK_BYTES", rows_a_block * 8 * built.matrix.filters)
    names = [entry.name for entry in built.entries()]
    matrix = distance_matrix([built.embedding(name) for name in names], distance)
    for row, name in zip(matrix, names, strict=True):
        order = [i for i in row.argsort().tolist() if names[i] != name]
        found = built.nearest(name, k=3, distance=distance)
        assert [other for other, _ in found] == [names[i] for i in order[:3]]
        assert [d for _, d in found] == pytest.approx(row[order[:3]].tolist(), abs=1e-7)  # float32 rows


def test_an_embedding_from_elsewhere_finds_its_neighbours(built, tmp_path):
    query = fisher_embed(tasks_of(3)[2], small_probe(), progress=False, name="query")
    found = built.nearest(query, k=10)
    assert len(found) == 5
    assert found[0] == ("task2", pytest.approx(0, abs=1e-9))
    other = fisher_embed(Blobs(), small_probe(small_resnet(seed=1)), progress=False)
    with pytest.raises(ValueError, match="differ in probe"):
        built.nearest(other)
    with pytest.raises(ValueError, match="k >= 1"):
        built.nearest("task0", 0)
    alone = build_library(tasks_of(1), tmp_path / "alone", small_probe())
    with pytest.raises(ValueError, match="expected tasks to compare with"):
        alone.nearest("task0")


def test_an_embedding_of_zeros_is_near_to_nothing(built, monkeypatch):
    def zeros(*arguments, **options):
        result = embed_task(*arguments, **options)
        return Embedding(**{**vars(result), "fisher": torch.zeros_like(result.fisher), "group_means": None})

    monkeypatch.setattr(library_build, "embed_task", zeros)
    build_library(tasks_of(6), built.folder, small_probe())
    assert "task5" not in [name for name, _ in built.nearest("task0")]
    with pytest.raises(ValueError, match="all zero"):
        built.nearest("task5")


def test_a_task_that_is_not_in_the_library_is_embedded_as_its_tasks_were(tmp_path):
    head = HeadSettings(l2=0.1)
    settings = EmbedSettings(estimator="exact", seed=3, head=head, num_samples=9, layers=["layer3"])
    library = build_library(tasks_of(3), tmp_path / "library", small_probe(), settings=settings)
    query = embed_for(library, tasks_of(3)[1], small_probe(), batch_size=5, progress=False)
    assert torch.allclose(query.fisher, library.embedding("task1").fisher, rtol=1e-6)
    assert library.nearest(query, k=1)[0].name == "task1"
    of_module = embed_for(library, tasks_of(3)[1], small_resnet(), batch_size=5, progress=False)
    assert torch.equal(of_module.fisher, query.fisher)
    with pytest.raises(ValueError, match="expected the probe of the embeddings"):
        embed_for(library, Blobs(), small_probe(small_resnet(seed=1)))
    with pytest.raises(TypeError, match="seed"):
        embed_for(library, Blobs(), small_probe(), seed=4)


def test_a_folder_of_embeddings_has_the_neighbours_of_its_library(built, tmp_path):
    (tmp_path / "files").mkdir()
    for name in built.names():
        built.embedding(name).save(tmp_path / "files" / f"{name}.safetensors")
    files = load_embeddings(tmp_path / "files")
    assert files.names() == built.names() == load_embeddings(built.folder).names()
    assert (files.probe, files.settings) == (built.probe, built.settings)
    for query in ("task1", built.embedding("task1")):
        found, expected = files.nearest(query, 3), built.nearest(query, 3)
        assert [one.name for one in found] == [one.name for one in expected]
        assert [one.distance for one in found] == pytest.approx([one.distance for one in expected], abs=1e-6)
    with pytest.raises(ValueError, match=r"expected a task of task0, .*; got 'task9'"):
        files.nearest("task9")
    with pytest.raises(ValueError, match="expected a library or embeddings"):
        load_embeddings(tmp_path)


def test_the_nearest_to_a_folder_of_images(tmp_path):
    for t in range(3):
        for c in range(2):
            (tmp_path / f"task{t}" / f"class{c}").mkdir(parents=True)
            for i in range(4):
                file = tmp_path / f"task{t}" / f"class{c}" / f"{i}.png"
                Image.effect_noise((50, 50), 20 + 40 * t + 20 * c).convert("RGB").save(file)
    library = build_library([tmp_path / f"task{t}" for t in range(2)], tmp_path / "library", "tiny", image_size=32)
    command = [sys.executable, "-m", "task2vec_ext", "nearest", "task2", "--library", "library"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    query = fisher_embed(tmp_path / "task2", "tiny", image_size=32, progress=False)
    order = [line.split()[1] for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert order == [name for name, _ in library.nearest(query)]
    missing = subprocess.run(
        [*command[:4], "nowhere", *command[5:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "expected a task of library, got 'nowhere'" in missing.stderr
