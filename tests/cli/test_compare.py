"""Distances relative to a library on the command line."""

import csv

import pytest
import torch
from command import run
from families import embedding
from pages import data_of

from task2vec_ext import Reference, distance_matrix

OPTIONS = ("--distance", "library_correlation")


@pytest.fixture
def folder(tmp_path):
    """Twelve embeddings of four families."""
    for number in range(12):
        embedding(number, number % 4).save(tmp_path / f"{number:02}.safetensors")
    return tmp_path


def matrix_of(capsys, *arguments):
    *command, file = arguments
    code, _, error = run(capsys, *command, "--csv", file)
    assert (code, error) == (0, "")
    with open(file) as text:
        _, *rows = csv.reader(text)
    return torch.tensor([[float(cell) for cell in row[1:]] for row in rows], dtype=torch.float64)


def test_distances_are_relative_to_the_folder_s_own_tasks_or_to_a_reference(capsys, folder, tmp_path):
    tasks = [embedding(number, number % 4) for number in range(12)]
    table = tmp_path / "m.csv"
    own = matrix_of(capsys, "distances", folder, *OPTIONS, table)
    expected = distance_matrix(tasks, "library_correlation", reference=Reference.of(tasks))
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
    others, file = tmp_path / "others", tmp_path / "reference"
    others.mkdir()
    for seed in range(10):
        embedding(seed, seed).save(others / f"{seed}.safetensors")
    reference = Reference.of([embedding(seed, seed) for seed in range(10)])
    code, out, _ = run(capsys, "library", "reference", others, "-o", file)
    assert (code, out) == (0, f"10 tasks, digest {reference.digest[:12]}: {file}\n")
    found = matrix_of(capsys, "distances", folder, *OPTIONS, "--reference", file, table)
    expected = distance_matrix(tasks, "library_correlation", reference=reference)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - own).abs().max() > 0.1
    near = run(capsys, "nearest", tasks[0].name, "--library", folder, *OPTIONS, "--reference", file, "-k", 1)[1]
    assert f"{tasks[int(expected[0].argsort()[1])].name}" in near
    assert f"{float(expected[0].sort().values[1]):.4f}" in near
    page = tmp_path / "page"
    assert run(capsys, "atlas", folder, "-o", page, *OPTIONS, "--reference", file)[0] == 0
    data = data_of(page / "index.html")
    assert data["distance"].startswith("1 − correlation of differences")
    assert data["high"] == pytest.approx(float(expected.max()))


def test_references_that_do_not_fit_are_one_line(capsys, folder, tmp_path):
    error = run(capsys, "distances", folder, "--reference", folder / "00.safetensors")[2]
    assert "00.safetensors was not written by Reference.save" in error
    Reference.of([embedding(seed, seed) for seed in range(10)]).save(tmp_path / "ten")
    error = run(capsys, "distances", folder, "--reference", tmp_path / "ten")[2]
    assert "expected --reference with 'library_correlation' and with no other distance" in error
    for number in range(2, 12):
        (folder / f"{number:02}.safetensors").unlink()
    error = run(capsys, "distances", folder, *OPTIONS)[2]
    assert "expected 3 tasks or more, got 2" in error
