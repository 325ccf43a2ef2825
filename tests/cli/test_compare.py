"""Distances relative to a library on the command line."""

import csv

import pytest
import torch
from command import run
from families import embedding

from task2vec_ext import Reference, distance_matrix

OPTIONS = ("--distance", "library_correlation")


@pytest.fixture
def folder(tmp_path):
    """Six embeddings of two families."""
    for number in range(6):
        embedding(number, number // 3).save(tmp_path / f"{number}.safetensors")
    return tmp_path


def matrix_of(capsys, *arguments):
    *command, file = arguments
    code, _, error = run(capsys, *command, "--csv", file)
    assert (code, error) == (0, "")
    with open(file) as text:
        _, *rows = csv.reader(text)
    return torch.tensor([[float(cell) for cell in row[1:]] for row in rows], dtype=torch.float64)


def test_distances_are_relative_to_the_folder_s_own_tasks_or_to_a_reference(capsys, folder, tmp_path):
    tasks = [embedding(number, number // 3) for number in range(6)]
    table = tmp_path / "m.csv"
    own = matrix_of(capsys, "distances", folder, *OPTIONS, table)
    expected = distance_matrix(tasks, "library_correlation", reference=Reference.of(tasks))
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
    reference = Reference.of([embedding(seed, family) for seed, family in enumerate((0, 1, 2, 3, 4))])
    (tmp_path / "references").mkdir()
    file = tmp_path / "references" / "five.safetensors"
    reference.save(file)
    found = matrix_of(capsys, "distances", folder, *OPTIONS, "--reference", file, table)
    expected = distance_matrix(tasks, "library_correlation", reference=reference)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - own).abs().max() > 0.1


def test_references_that_do_not_fit_are_one_line(capsys, folder, tmp_path):
    error = run(capsys, "distances", folder, "--reference", folder / "0.safetensors")[2]
    assert "0.safetensors was not written by Reference.save" in error
    Reference.of([embedding(seed, seed) for seed in range(3)]).save(tmp_path / "three")
    error = run(capsys, "distances", folder, "--reference", tmp_path / "three")[2]
    assert "expected --reference with 'library_correlation' and with no other distance" in error
    for number in range(2, 6):
        (folder / f"{number}.safetensors").unlink()
    error = run(capsys, "distances", folder, *OPTIONS)[2]
    assert "expected 3 tasks or more, got 2" in error
