import json
import os
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import QUICK, Blobs, small_probe, small_resnet

from task2vec_ext import as_task, fisher_embed, load_probe
from task2vec_ext._util.lock import BusyError
from task2vec_ext.experts.expert import Expert, _alone, experts_in, load_expert, save_expert, train_expert
from task2vec_ext.experts.features import head_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory, folders):
    """A folder with one expert, of the tiny probe and ``task0``."""
    root = tmp_path_factory.mktemp("experts")
    train_expert(folders[0], root, "tiny", recipe=QUICK, held_out=0.34)
    return root


def test_an_expert_is_found_again_with_the_network_that_was_trained(folder):
    (expert,) = experts_in(folder)
    assert isinstance(expert, Expert)
    card = expert.card
    assert (expert.name, card.architecture, card.head, card.num_classes) == ("task0", "tiny", "fc", 2)
    assert card.classes == ("class0", "class1")
    assert card.num_images == 4  # of 6, two held out
    assert set(card.metrics) == {"error", "nll", "epoch"}
    assert card.recipe["started_from"] == {"weights": "offline", "fingerprint": load_probe("tiny").fingerprint}
    probe = expert.probe()
    assert probe.fingerprint == card.fingerprint != load_probe("tiny").fingerprint
    assert probe.preprocess == load_probe("tiny").preprocess
    assert probe.module.fc.out_features == 2
    for name, value in load_file(expert.weights).items():
        assert torch.equal(probe.module.state_dict()[name], value)
    assert {file.name for file in expert.folder.iterdir()} == {"card.json", "weights.safetensors", "lock"}


def test_an_expert_that_is_there_is_not_trained_again(folder, folders, monkeypatch):
    monkeypatch.setattr("task2vec_ext.experts.expert.fine_tune", None)
    again = train_expert(folders[0], folder, "tiny", recipe=QUICK, held_out=0.34)
    assert again.card == experts_in(folder)[0].card
    with pytest.raises(ValueError, match="another recipe, seed or probe"):
        train_expert(folders[0], folder, "tiny", recipe=QUICK, held_out=0.34, seed=1)
    with pytest.raises(ValueError, match="another image size or preprocessing"):
        train_expert(folders[0], folder, load_probe("tiny", image_size=40), recipe=QUICK, held_out=0.34)
    with pytest.raises(ValueError, match="another images"):
        train_expert(as_task(folders[1], name="task0"), folder, "tiny", recipe=QUICK, held_out=0.34)


def test_the_embedding_of_its_task_lies_beside_it(folder, folders):
    expert = experts_in(folder)[0]
    assert expert.embedding is None
    made = fisher_embed(folders[0], "tiny", progress=False)
    made.save(expert.embedding_file)
    found = experts_in(folder)[0].embedding
    assert torch.equal(found.fisher, made.fisher)
    expert.embedding_file.unlink()


def test_an_expert_is_replaced_as_a_whole_or_not_at_all(folders, tmp_path, monkeypatch):
    embedding = fisher_embed(folders[0], "tiny", progress=False)
    first = save_expert(small_probe(), tmp_path, "good", embedding=embedding)
    assert first.embedding.name == "task0"
    other = small_probe(small_resnet(seed=1))
    with pytest.raises(ValueError, match=r"expected no expert 'good' in .*--overwrite"):
        save_expert(other, tmp_path, "good")
    assert load_expert(first.folder).card == first.card
    with monkeypatch.context() as patch:
        patch.setattr("task2vec_ext.experts.expert.save", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_expert(other, tmp_path, "good", overwrite=True)
    assert experts_in(tmp_path) == []  # not the old card beside new weights
    found = save_expert(other, tmp_path, "good", overwrite=True)
    assert found.fingerprint == other.fingerprint
    assert found.embedding is None  # the other's


def test_an_expert_is_changed_by_one_process_at_a_time(folder, folders):
    with _alone(folder / "task3"), pytest.raises(BusyError, match="another process is training or writing the expert"):
        train_expert(folders[3], folder, "tiny", recipe=QUICK)


def test_the_name_of_the_probe_without_fine_tuning_is_refused(tmp_path, folders):
    name = "imagenet"
    with pytest.raises(ValueError, match="expected another name than 'imagenet'"):
        save_expert(small_probe(), tmp_path, name)
    with pytest.raises(ValueError, match="expected another name than 'imagenet'"):
        train_expert(as_task(folders[0], name=name), tmp_path, "tiny", recipe=QUICK)
    assert list(tmp_path.iterdir()) == []
    made = save_expert(small_probe(), tmp_path, "net")
    card = made.folder / "card.json"
    card.write_text(card.read_text().replace('"name": "net"', f'"name": "{name}"'))  # of version 0.2
    with pytest.raises(ValueError, match="expected no expert called 'imagenet'"):
        experts_in(tmp_path)


def test_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        made = save_expert(small_probe(), tmp_path, "a")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (made.weights, made.folder / "card.json")} == {0o640}


def test_any_network_can_be_registered_and_asks_for_its_module(tmp_path):
    probe = small_probe()
    made = save_expert(probe, tmp_path, "birds: all", classes=["a", "b", "c"], metrics={"error": 0.25})
    assert made.folder == tmp_path / "birds_all"
    (found,) = experts_in(tmp_path)
    assert (found.name, found.card.classes, found.card.num_images) == ("birds: all", ("a", "b", "c"), None)
    with pytest.raises(ValueError, match="expected the module of 'birds: all', whose architecture 'small'"):
        found.probe()
    again = found.probe(small_resnet(seed=1))
    assert again.fingerprint == probe.fingerprint
    assert head_fingerprint(again) == head_fingerprint(probe)


def test_a_checkpoint_becomes_an_expert(tmp_path):
    source = load_probe("tiny")
    save_file(source.module.state_dict(), tmp_path / "weights.safetensors")
    expert = save_expert(load_probe("tiny"), tmp_path / "experts", "kinds", num_images=34_000)
    assert expert.card.num_classes == source.module.fc.out_features
    assert load_expert(expert.folder).probe().fingerprint == source.fingerprint


def test_weights_of_another_architecture_or_another_network_are_refused(folder, tmp_path):
    expert = experts_in(folder)[0]
    foreign = Expert(tmp_path, expert.card)
    with pytest.raises(ValueError, match="found no such file"):
        foreign.probe()
    save_file(small_resnet().state_dict(), foreign.weights)
    with pytest.raises(ValueError, match="fits the expert 'task0'"):
        foreign.probe()
    others = load_file(expert.weights)
    others["conv1.weight"] = others["conv1.weight"] + 1
    save_file(others, foreign.weights)
    with pytest.raises(ValueError, match="expected the weights of 'task0' that its card describes"):
        foreign.probe()


def test_folders_without_cards_are_no_experts_and_bad_cards_are_named(tmp_path):
    with pytest.raises(ValueError, match="found none at"):
        experts_in(tmp_path / "none")
    (tmp_path / "in training").mkdir()
    (tmp_path / "in training" / "checkpoint.pt").touch()
    assert experts_in(tmp_path) == []
    made = save_expert(small_probe(), tmp_path, "a")
    card = made.folder / "card.json"
    text = json.loads(card.read_text())
    for change, message in (
        ({"format": 2}, "in format 1, got 2; update"),
        ({"colour": "red"}, "entries format, name, architecture"),
    ):
        card.write_text(json.dumps({**text, **change}))
        with pytest.raises(ValueError, match=message):
            experts_in(tmp_path)
    card.write_text("{")
    with pytest.raises(ValueError, match="to be JSON"):
        experts_in(tmp_path)
    with pytest.raises(ValueError, match=r"expected card\.json in"):
        load_expert(tmp_path)


def test_names_that_clash_are_refused(tmp_path):
    save_expert(small_probe(), tmp_path, "a b")
    with pytest.raises(ValueError, match="free for 'a_b', got the expert 'a b'"):
        save_expert(small_probe(), tmp_path, "a_b")
    (tmp_path / "a_b").rename(tmp_path / "elsewhere")
    save_expert(small_probe(), tmp_path, "a b")
    with pytest.raises(ValueError, match="different names, got 'a b' in"):
        experts_in(tmp_path)


def test_class_names_that_do_not_fit_the_head_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected 3 names of classes"):
        save_expert(small_probe(), tmp_path, "a", classes=["one"])
    assert list(tmp_path.iterdir()) == []


def test_a_task_of_one_class_is_refused_before_anything_is_written(tmp_path):
    task = as_task([(image, 0) for image, _ in Blobs(n=6)], name="one")
    with pytest.raises(ValueError, match="at least two classes"):
        train_expert(task, tmp_path, small_probe())
    assert list(tmp_path.iterdir()) == []
