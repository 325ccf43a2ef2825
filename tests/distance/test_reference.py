"""The reference of ``library_correlation``: what it holds, what it refuses, and its file."""

import dataclasses

import numpy as np
import pytest
import torch
from synthetic import embedding

from task2vec_ext import EmbedSettings, HeadSettings, Reference, Task2VecWarning, cross_distances, distance_matrix
from task2vec_ext.distance import check_comparable

K = 60
KIND = "library_correlation"
OTHER = EmbedSettings(head=HeadSettings(l2=1.0))


@pytest.fixture
def tasks():
    """Twelve tasks; a tenth of the filters are dead."""
    generator = torch.Generator().manual_seed(0)
    logs = 2 * torch.randn(12, K, generator=generator, dtype=torch.float64)
    alive = torch.rand(12, K, generator=generator) >= 0.1
    return [embedding(row, f"task {t}") for t, row in enumerate(logs.exp() * alive)]


def test_the_reference_is_the_mean_log_fisher_of_unit_mean_with_a_floor(tasks):
    rows = np.stack([one.fisher.numpy() for one in tasks])
    expected = np.log(rows / rows.mean(1, keepdims=True) + 1e-3).mean(0)
    found = Reference.of(iter(tasks))
    np.testing.assert_allclose(found.mean, expected, rtol=0, atol=5e-7)  # float32: logs of size 7 are known to 2e-7
    assert (found.num_tasks, len(found), found.layers) == (12, K, tasks[0].layers)
    assert (found.probe, found.settings) == (tasks[0].probe, tasks[0].settings)


def test_a_distance_is_one_minus_the_correlation_of_differences_from_the_reference(tasks):
    rows = np.stack([one.fisher.numpy() for one in tasks])
    logs = np.log(rows / rows.mean(1, keepdims=True) + 1e-3)
    found = distance_matrix(tasks, KIND, reference=Reference.of(tasks))
    np.testing.assert_allclose(found, 1 - np.corrcoef(logs - logs.mean(0)), rtol=0, atol=1e-6)
    plain = distance_matrix(torch.from_numpy(rows), KIND, reference=Reference.of(tasks))
    assert torch.equal(plain, found)


def test_the_order_of_the_tasks_and_a_library_s_rounding_do_not_show(tasks):
    reference = Reference.of(tasks)
    assert Reference.of(tasks[::-1]).digest == reference.digest
    assert Reference.of_rows((one.fisher.float() for one in tasks), tasks[0]).digest == reference.digest


def test_the_unit_of_a_task_does_not_count(tasks):
    reference, scales = Reference.of(tasks), torch.logspace(-300, 300, 12, dtype=torch.float64)
    scaled = torch.stack([one.fisher for one in tasks]) * scales[:, None]
    expected = distance_matrix(tasks, KIND, reference=reference)
    torch.testing.assert_close(distance_matrix(scaled, KIND, reference=reference), expected, rtol=0, atol=1e-12)


def test_a_new_task_changes_no_distance_between_others(tasks):
    reference = Reference.of(tasks[:10])
    whole = distance_matrix(tasks, KIND, reference=reference)
    assert torch.equal(whole[:10, :10], distance_matrix(tasks[:10], KIND, reference=reference))
    new = cross_distances(tasks[:10], tasks[10:], KIND, reference=reference)
    torch.testing.assert_close(new, whole[:10, 10:], rtol=0, atol=1e-14)


def test_a_task_in_the_reference_has_the_direction_it_has_outside(tasks):
    """m with the task is m + (x − m)/(T + 1), so x minus it is T/(T + 1) of what it was: no correlation sees that."""
    without, within = Reference.of(tasks[1:]), Reference.of(tasks)
    before, after = (one.differences(tasks[0].fisher[None]) for one in (without, within))
    torch.testing.assert_close(after, before * 11 / 12, rtol=0, atol=1e-6)  # float32 means


def test_a_saved_reference_is_the_same(tasks, tmp_path):
    reference, path = Reference.of(tasks), tmp_path / "birds.safetensors"
    reference.save(path)
    again = Reference.load(path)
    assert torch.equal(again.mean, reference.mean)
    same = ("num_tasks", "probe", "layers", "settings", "floor", "digest", "name")
    assert [getattr(again, field) for field in same] == [getattr(reference, field) for field in same]
    assert repr(again) == f"Reference(12 tasks, K=60, probe tiny none, {reference.digest[:12]})"
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    others = (Reference.of(tasks[1:]), dataclasses.replace(reference, floor=1e-2), Reference.of([*tasks, tasks[0]]))
    assert len({reference.digest, *(other.digest for other in others)}) == 4


def test_load_refuses_damage_and_other_files(tasks, tmp_path):
    path = tmp_path / "birds.safetensors"
    Reference.of(tasks).save(path)
    whole = path.read_bytes()
    for index in range(0, len(whole), 7):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x20]) + whole[index + 1 :])
        with pytest.raises(ValueError, match=r"Reference\.load: .*birds\.safetensors"):
            Reference.load(path)
    with pytest.raises(ValueError, match=r"Reference\.load: expected the reference's file at .*found no such file"):
        Reference.load(tmp_path / "nowhere")
    tasks[0].save(path)
    with pytest.raises(ValueError, match=r"birds\.safetensors was not written by Reference\.save"):
        Reference.load(path)
    Reference.of(tasks).save(path)
    with pytest.raises(ValueError, match=r"birds\.safetensors was not written by Embedding\.save"):
        type(tasks[0]).load(path)


def test_references_of_too_few_tasks_of_zeros_or_of_different_settings_are_refused(tasks):
    for few in ([], tasks[:1], tasks[:2]):
        with pytest.raises(ValueError, match=f"Reference: expected 3 tasks or more, got {len(few) or 'none'}"):
            Reference.of(few)
    for some in (3, 9):
        with pytest.warns(Task2VecWarning, match=f"expected 10 tasks or more .* got {some}"):
            Reference.of(tasks[:some])
    with pytest.raises(ValueError, match="expected no embedding of zeros, number 3 is one"):
        Reference.of([*tasks[:3], embedding(torch.zeros(K, dtype=torch.float64), "zeros")])
    with pytest.raises(ValueError, match=r"'task 0' .* 'task 1' .*head l2: None against 1"):
        Reference.of([tasks[0], dataclasses.replace(tasks[1], settings=OTHER)])
    with pytest.raises(ValueError, match=r"finite float64 mean of shape \[60\].*got torch.float64 of shape \[59\]"):
        dataclasses.replace(Reference.of(tasks), mean=torch.zeros(59, dtype=torch.float64))


def test_a_reference_of_other_settings_or_length_is_refused(tasks):
    others = [dataclasses.replace(one, settings=OTHER) for one in tasks]
    reference = Reference.of(others)
    with pytest.raises(ValueError, match=r"'the reference of 12 tasks' .* 'task 0' .*head l2: 1.0 against None"):
        distance_matrix(tasks, KIND, reference=reference)
    with pytest.raises(ValueError, match=r"expected rows of 60 filters, .* got 3"):
        distance_matrix(torch.ones(2, 3), KIND, reference=reference)
    check_comparable([reference, *others])


def test_a_reference_is_asked_for_and_refused_where_none_counts(tasks):
    with pytest.raises(ValueError, match=r"distance_matrix: expected reference .*library.reference\(\)"):
        distance_matrix(tasks, KIND)
    with pytest.raises(ValueError, match=r"with no other distance, got Reference.* with 'sym'"):
        cross_distances(tasks, tasks, reference=Reference.of(tasks))


def test_a_task_that_does_not_differ_from_the_reference_has_no_distance(tasks):
    reference = Reference.of([tasks[0]] * 12)
    with pytest.raises(ValueError, match=r"embedding 'task 0' has none"):
        distance_matrix(tasks, KIND, reference=reference)
    with pytest.raises(ValueError, match="row 0 has none"):  # rounded as a library's rows are
        distance_matrix(tasks[0].fisher.float()[None], KIND, reference=reference)
