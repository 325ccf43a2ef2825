"""Files of weights: prefixes, wrappers, heads of others, and files that are something else."""

import argparse
import gzip
import re
import struct
import traceback
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from small import small_resnet
from torch import nn

from task2vec_ext import Task2VecWarning, load_probe
from task2vec_ext.probe.checkpoint import read_checkpoint

OTHER = {"queue": torch.zeros(3), "criterion.weight": torch.ones(2)}


def prefixed(prefix, state=None):
    return {prefix + name: value for name, value in (state or small_resnet(1).state_dict()).items()}


def loaded(content, tmp_path, net=None):
    torch.save(content, tmp_path / "weights.pth")
    return load_probe(net or small_resnet(0), preprocess=None, weights=tmp_path / "weights.pth")


def is_second(probe):
    return probe.fingerprint == load_probe(small_resnet(1), preprocess=None).fingerprint


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off_silently(prefix, tmp_path):
    probe = loaded(prefixed(prefix), tmp_path)
    assert is_second(probe)
    assert not probe.random_head


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "encoder.", "model.backbone.", "module.visual."])
@pytest.mark.parametrize("others", [{}, OTHER], ids=["alone", "beside-others"])
def test_one_common_prefix_is_taken_off_and_reported(prefix, others, tmp_path):
    also = "; left out 2 others \\(queue, criterion.weight" if others else "$"
    with pytest.warns(Task2VecWarning, match=rf"the names that begin with '{prefix}'{also}"):
        probe = loaded({"state_dict": prefixed(prefix) | others, "epoch": 3}, tmp_path)
    assert is_second(probe)
    assert not probe.random_head


@pytest.mark.parametrize("names", [("module.encoder_q.", "module.encoder_k."), ("online_encoder.", "target_encoder.")])
def test_of_a_network_and_its_moving_average_the_trained_one_is_taken(names, tmp_path):
    other = prefixed(names[1], small_resnet(2).state_dict())
    with pytest.warns(Task2VecWarning, match=f"begin with '{names[0]}'; left out"):
        assert is_second(loaded(other | prefixed(names[0]), tmp_path))


def test_two_networks_in_one_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one network .* got several, whose names begin with 'a\.', 'b\.'; save one"):
        loaded(prefixed("a.") | prefixed("b."), tmp_path)
    with pytest.raises(ValueError, match="got the entries 'student', 'teacher'; save one"):
        loaded({"student": prefixed(""), "teacher": prefixed("")}, tmp_path)


def test_what_is_missing_under_a_prefix_is_told_by_the_networks_names(tmp_path):
    state = prefixed("model.")
    del state["model.layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"prefix 'model\.' taken off,; missing: layer1\.0\.conv1\.weight\. Is it"):
        loaded(state, tmp_path)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net", "ema", "weights"])
def test_wrappers_are_taken_off(wrapper, tmp_path):
    assert is_second(loaded({"epoch": 3, wrapper: prefixed(""), "optimizer": {"state": {}}}, tmp_path))


@pytest.mark.parametrize("kind", ["missing", "projector", "other-classes"])
def test_a_head_that_the_checkpoint_lacks_is_random(kind, tmp_path):
    state = {name: value for name, value in prefixed("").items() if not name.startswith("fc.")}
    if kind == "projector":  # as MoCo v2 writes it
        state |= {"fc.0.weight": torch.zeros(10, 10), "fc.2.weight": torch.zeros(4, 10)}
    if kind == "other-classes":
        state |= {"fc.weight": torch.zeros(7, 10), "fc.bias": torch.zeros(7)}
    net = small_resnet(0)
    probe = loaded(state, tmp_path, net)
    assert is_second(probe)
    assert probe.random_head
    assert net.fc.out_features == 3


def test_named_networks_know_whether_their_head_is_random(tmp_path):
    net = load_probe("tiny")
    assert not net.random_head
    assert load_probe("tiny", weights="random").random_head
    state = load_probe("resnet18", weights="random").module.state_dict()
    torch.save(state, tmp_path / "whole.pth")
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "body.pth")
    assert not load_probe("resnet18", weights=tmp_path / "whole.pth").random_head
    assert load_probe("resnet18", weights=tmp_path / "body.pth").random_head


def test_the_head_of_a_checkpoint_is_left_out_where_the_network_has_none(tmp_path):
    net = small_resnet(0)
    net.fc = nn.Identity()
    torch.save(small_resnet(1).state_dict(), tmp_path / "w.pth")
    probe = load_probe(net.eval(), preprocess=None, head="features", weights=tmp_path / "w.pth")
    assert torch.equal(probe.module.conv1.weight, small_resnet(1).conv1.weight)


def test_the_content_counts_not_the_ending(tmp_path):
    state = small_resnet(1).state_dict()
    save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "b.safetensors", "c.bin"):
        assert torch.equal(read_checkpoint(tmp_path / name)["conv1.weight"], state["conv1.weight"])


def zipped(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return path.read_bytes()


def saved(path, content):
    torch.save(content, path)
    return path.read_bytes()


def scripted(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    return path.read_bytes()


class Config:
    """Any class of the user's."""


def safetensors_bytes(path):
    save_file({"a": torch.zeros(100)}, path)
    return path.read_bytes()


FOREIGN = {
    "empty": (lambda p: b"", "it is empty"),
    "html": (lambda p: b"\n<!DOCTYPE html><html>sign in</html>", "a web page"),
    "html-with-mark": (lambda p: b"\xef\xbb\xbf<HTML>", "a web page"),
    "xml": (lambda p: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "lfs": (lambda p: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
    "json": (lambda p: b'{"weight_map": {}}', "JSON text"),
    "text": (lambda p: b"Entry not found", "text that begins with 'Entry not found'"),
    "gzip": (lambda p: gzip.compress(b"x"), "gzip"),
    "bzip2": (lambda p: b"BZh91AY&SY", "bzip2"),
    "xz": (lambda p: b"\xfd7zXZ\x00\x00", "an xz archive"),
    "zstd": (lambda p: b"\x28\xb5\x2f\xfd\x00", "zstd"),
    "tar": (lambda p: b"weights.pth".ljust(257, b"\0") + b"ustar\x0000", "a tar archive"),
    "zip": (lambda p: zipped(p, "model.pth"), "a zip archive of model.pth"),
    "truncated-zip": (lambda p: saved(p, {"a": torch.zeros(1000)})[:2000], "truncated zip archive"),
    "truncated-pickle": (lambda p: b"\x80\x02}q\x00(X\x01", "damaged or truncated"),
    "truncated-safetensors": (lambda p: safetensors_bytes(p)[:-100], "damaged or truncated"),
    "cut-safetensors-header": (lambda p: struct.pack("<Q", 500) + b'{"a":', "damaged or truncated"),
    "torchscript": (scripted, r"TorchScript; save its weights: torch.save\(torch.jit.load"),
    "keras": (lambda p: b"\x89HDF\r\n\x1a\n", "HDF5"),
    "numpy": (lambda p: b"\x93NUMPY\x01\x00", "NumPy"),
    "elf": (lambda p: b"\x7fELF\x02\x01\x01\x00\xff\xfe", "its first bytes are 7f 45 4c 46"),
    "object": (lambda p: saved(p, {"config": Config(), "w": torch.ones(1)}), r"the Python object \S*Config, which"),
    "namespace": (lambda p: saved(p, argparse.Namespace(lr=1)), r"the Python object argparse.Namespace"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of its own files
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_something_else_is_told_by_its_first_bytes(kind, ending, tmp_path):
    content, what = FOREIGN[kind]
    (tmp_path / f"weights.{ending}").write_bytes(content(tmp_path / "made"))
    with pytest.raises(ValueError, match=rf"weights\.{ending} could not be read: .*{what}") as caught:
        read_checkpoint(tmp_path / f"weights.{ending}")
    text = "".join(traceback.format_exception(caught.value))
    assert "weights_only" not in re.sub(r'File ".*\n.*\n', "", text)
    assert text.count("Traceback") == 1
    assert len(str(caught.value)) < 600


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="found a folder; name the file in it"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "probe", ["resnet18", "tiny", "timm:resnet18", small_resnet()], ids=["resnet18", "tiny", "timm", "module"]
)
def test_weights_in_memory_give_a_short_message(probe):
    if probe == "timm:resnet18":
        pytest.importorskip("timm")
    with pytest.raises((TypeError, ValueError), match="an object of type OrderedDict; to use weights") as caught:
        load_probe(probe, weights=small_resnet().state_dict())
    assert len(str(caught.value)) < 1000


def test_a_zip_bomb_is_refused_unread(tmp_path):
    torch.save({"weight": torch.zeros(1 << 22)}, tmp_path / "plain.pth")
    bomb = zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb\.pth could not be read: it unpacks to 16,\d+,\d+ bytes"):
        read_checkpoint(tmp_path / "bomb.pth")
