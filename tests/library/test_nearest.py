import dataclasses

import pytest
import torch
from command import run
from libraries import tasks_of
from PIL import Image
from small import Blobs, small_probe, small_resnet

from task2vec_ext import (
    Embedding,
    EmbedSettings,
    HeadSettings,
    Library,
    Reference,
    Task2VecWarning,
    build_library,
    cross_distances,
    distance_matrix,
    embed_for,
    fisher_embed,
    load_embeddings,
)
from task2vec_ext.embed import embed_task, spread
from task2vec_ext.embedding import ProbeInfo
from task2vec_ext.library import library as _library
from task2vec_ext.library import nearest as _nearest


@pytest.mark.parametrize("distance", ["sym", "sym_scaled"])
@pytest.mark.parametrize("rows_a_block", [1, 2, 1000])
def test_the_nearest_are_those_of_the_distance_matrix(built, monkeypatch, distance, rows_a_block):
    monkeypatch.setattr(_library, "_BLOCK_BYTES", rows_a_block * 8 * built.made_with.filters)
    built = Library(built.folder)
    names = [entry.name for entry in built.entries()]
    matrix = distance_matrix([built.embedding(name) for name in names], distance)
    for row, name in zip(matrix, names, strict=True):
        order = [i for i in row.argsort().tolist() if names[i] != name]
        found = built.nearest(name, k=3, distance=distance)
        assert [other for other, _ in found] == [names[i] for i in order[:3]]
        assert [d for _, d in found] == pytest.approx(row[order[:3]].tolist(), abs=1e-7)  # float32 rows


def test_the_nearest_relative_to_the_library_or_to_another_reference(tmp_path):
    *tasks, new = tasks_of(12)
    library = build_library(tasks, tmp_path, small_probe(), progress=False)
    files, reference = load_embeddings(tmp_path), library.reference()
    assert (reference.num_tasks, reference.probe, reference.settings) == (11, library.probe, library.settings)
    assert files.reference().digest == Reference.of(files[::-1]).digest == reference.digest
    query = fisher_embed(new, small_probe(), progress=False)
    for given in (None, Reference.of(files[:10])):
        how = {"distance": "library_correlation", "reference": given}
        expected = cross_distances(files, [query], "library_correlation", reference=given or reference)[:, 0]
        found = library.nearest(query, 11, **how)
        assert [name for name, _ in found] == [files.names()[i] for i in expected.argsort().tolist()]
        assert [d for _, d in found] == pytest.approx(expected.sort().values.tolist(), abs=1e-5)  # float32 rows
        own = library.nearest("task3", 2, **how)
        assert own == library.nearest(library.embedding("task3"), 3, **how)[1:]
    assert library.reference().digest == reference.digest
    with pytest.raises(ValueError, match=r"expected reference .* with no other distance"):
        library.nearest("task3", reference=reference)
    other = dataclasses.replace(reference, probe=ProbeInfo("tiny", "none", "00"))
    with pytest.raises(ValueError, match=r"'the reference of 11 tasks' .* 'task3' .* differ in probe"):
        library.nearest("task3", distance="library_correlation", reference=other)
    library.remove(["task0", "task1"])
    with pytest.warns(Task2VecWarning, match=r"expected 10 tasks or more .* got 9"):
        library.nearest(query, distance="library_correlation")


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


K = 300


@pytest.fixture
def rows() -> torch.Tensor:
    """200 log-normal rows in 20 groups, some filters dead."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(20, K, generator=random).repeat(10, 1)
    rows = (centres + 0.3 * torch.randn(200, K, generator=random)).exp()
    rows[:, ::50] = 0
    return rows


def in_blocks(rows: torch.Tensor, size: int):
    return zip(torch.arange(len(rows)).split(size), rows.split(size), strict=True)


@pytest.mark.parametrize("size", [1, 30, 200])
def test_the_tasks_with_near_sketches_hold_the_nearest(rows, monkeypatch, size):
    monkeypatch.setattr(_nearest, "CANDIDATES", 20)
    query = rows[3].double() * 1.01
    some = _nearest.candidates(in_blocks(_nearest.sketch(rows.double()), size), query)
    assert len(some) == 20
    exact = _nearest.nearest(in_blocks(rows, size), query, 10)
    near = _nearest.nearest([(some, rows[some])], query, 10)
    assert torch.equal(near.numbers, exact.numbers)
    assert torch.equal(near.distances, exact.distances)


def test_sketches_are_as_far_apart_as_close_tasks():
    random = torch.Generator().manual_seed(0)
    a = torch.randn(1, 4000, generator=random, dtype=torch.float64).exp()
    b = a * (0.1 * torch.randn(50, 4000, generator=random, dtype=torch.float64)).exp()
    square = (_nearest.sketch(a) - _nearest.sketch(b)).square().sum(1)
    expected = torch.stack([1 - torch.cosine_similarity(a[0] / (a[0] + row), row / (a[0] + row), dim=0) for row in b])
    # One of 128 random directions is off by a standard error of 12 %; of 50 tasks, by 2 %.
    torch.testing.assert_close(square.double().mean() / 2, expected.mean(), rtol=0.1, atol=0)


def test_equal_distances_are_in_the_order_of_their_numbers_whatever_the_blocks(rows):
    same = rows[:1].repeat(50, 1)
    for order in (torch.arange(50), torch.arange(49, -1, -1)):
        found = _nearest.nearest(zip(order.split(7), same.split(7), strict=True), rows[1].double(), 5)
        assert found.numbers.tolist() == [0, 1, 2, 3, 4]


def test_a_large_library_finds_what_a_small_one_would(built, monkeypatch):
    expected = [built.nearest(f"task{t}", 1) for t in range(5)]
    monkeypatch.setattr(_library, "EXACT_UP_TO", 1)
    monkeypatch.setattr(_nearest, "CANDIDATES", 2)
    assert [built.nearest(f"task{t}", 1) for t in range(5)] == expected


def test_an_embedding_of_zeros_is_near_to_nothing(built, monkeypatch):
    def zeros(*arguments, **options):
        result = embed_task(*arguments, **options)
        return Embedding(**{**vars(result), "fisher": torch.zeros_like(result.fisher), "group_means": None})

    monkeypatch.setattr(spread, "embed_task", zeros)
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


def test_the_nearest_to_a_folder_of_images(tmp_path, monkeypatch, capsys):
    for t in range(3):
        for c in range(2):
            (tmp_path / f"task{t}" / f"class{c}").mkdir(parents=True)
            for i in range(4):
                file = tmp_path / f"task{t}" / f"class{c}" / f"{i}.png"
                Image.effect_noise((50, 50), 20 + 40 * t + 20 * c).convert("RGB").save(file)
    library = build_library([tmp_path / f"task{t}" for t in range(2)], tmp_path / "library", "tiny", image_size=32)
    monkeypatch.chdir(tmp_path)
    code, out, error = run(capsys, "nearest", "task2", "--library", "library")
    assert code == 0, error
    query = fisher_embed(tmp_path / "task2", "tiny", image_size=32, progress=False)
    order = [line.split()[1] for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert order == [name for name, _ in library.nearest(query)]
    code, out, error = run(capsys, "nearest", "nowhere", "--library", "library")
    assert (code, out) == (1, "")
    assert "expected a task of library, got 'nowhere'" in error
