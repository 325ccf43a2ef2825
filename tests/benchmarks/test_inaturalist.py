"""inaturalist.py on a stand-in of the data set."""

import argparse

import pytest
import torch


@pytest.fixture
def published(tmp_path):
    """A stand-in of iNaturalist 2018: 30 small images, 4 classes."""
    from inaturalist import write_synthetic

    write_synthetic(tmp_path, 30, side=40, classes=4)
    return tmp_path


def test_inaturalist_is_one_task_of_all_species_or_of_a_taxon(published):
    from inaturalist import task_of

    task = task_of(published)
    counts = dict(zip(task.classes, torch.bincount(task.labels).tolist(), strict=True))
    assert sum(counts.values()) == len(task) == 30
    numbers = [counts[f"species {c}"] for c in range(4)]
    assert numbers == sorted(numbers, reverse=True)  # long-tailed
    assert numbers[0] > 2 * numbers[-1]
    assert len(task_of(published, where="supercategory=Aves")) == numbers[0] + numbers[3]
    with pytest.raises(ValueError, match="expected supercategory to be one of Aves, Insecta, Plantae; got 'Fungi'"):
        task_of(published, where="supercategory=Fungi")
    with pytest.raises(ValueError, match="expected level to be a rank"):
        task_of(published, where="order=Owls")


def test_inaturalist_stand_in_is_the_same_every_time(published, tmp_path_factory):
    from inaturalist import write_synthetic

    again = tmp_path_factory.mktemp("again")
    write_synthetic(again, 30, side=40, classes=4)
    files = sorted(path.relative_to(again) for path in again.rglob("*.j*"))
    assert len(files) == 31
    assert all((again / file).read_bytes() == (published / file).read_bytes() for file in files)


def test_inaturalist_stand_in_may_copy_images_of_a_class(tmp_path):
    from inaturalist import task_of, write_synthetic

    write_synthetic(tmp_path, 30, side=40, classes=4, distinct=2)
    files = {path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    assert len(files) == 8
    assert len(task_of(tmp_path)) == 30


def test_inaturalist_stand_in_never_overwrites_annotations(published):
    from inaturalist import write_synthetic

    with pytest.raises(ValueError, match="expected an empty folder"):
        write_synthetic(published, 3)


def test_inaturalist_says_who_waits_for_whom(published, capsys):
    import inaturalist

    options = argparse.Namespace(
        arch="tiny", size=24, workers=1, batch_size=8, num_samples=24, repeats=1, device="cpu", synthetic=30
    )
    result = inaturalist.measure(inaturalist.task_of(published), options)
    assert result["images"] == 24
    assert 0 < result["waiting_share"] < 1
    inaturalist.report(result)
    printed = capsys.readouterr().out
    assert "device waits for images" in printed
    assert result["whole_split"]["images"] == 30
    assert "The split's 30 images would take" in printed
