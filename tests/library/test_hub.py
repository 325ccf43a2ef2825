import hashlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import Blobs, small_probe

from task2vec_ext import Library, as_task, build_library
from task2vec_ext.library import hub, pull_library, push_library

hf = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    """Three tasks."""
    tasks = [as_task(Blobs(n=12, seed=t), name=f"task{t}") for t in range(3)]
    return build_library(tasks, tmp_path_factory.mktemp("library") / "lib", small_probe())


def sums(folder: Path) -> dict[str, str]:
    """Checksums of what makes a library."""
    files = [folder / "library.json", *(folder / "embeddings").iterdir()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def theirs(library, tmp_path) -> Path:
    """A folder that somebody else made: a copy without the caches."""
    return shutil.copytree(library.folder, tmp_path / "theirs", ignore=shutil.ignore_patterns("cache"))


@pytest.fixture
def cached(theirs, tmp_path, monkeypatch) -> Path:
    """The hub's cache after a download of ``user/lib``: links to blobs; no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    store = tmp_path / "hub" / "datasets--user--lib"
    snapshot = store / "snapshots" / COMMIT
    for part in ("refs", "blobs"):
        (store / part).mkdir(parents=True)
    (store / "refs" / "main").write_text(COMMIT)
    (theirs / "README.md").write_text("a card")
    for file in [theirs / "library.json", theirs / "README.md", *(theirs / "embeddings").iterdir()]:
        blob = store / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(theirs)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_folder_is_pulled_bit_for_bit(library, theirs, tmp_path):
    pulled = pull_library(theirs, tmp_path / "mine")
    assert sums(pulled.folder) == sums(library.folder)
    assert pulled.names() == ["task0", "task1", "task2"]
    assert pulled.verify() == []
    pulled.remove(["task1"])
    assert sums(pull_library(str(theirs), tmp_path / "mine").folder) == sums(library.folder)


def test_a_library_of_the_hubs_cache_is_pulled_bit_for_bit_without_the_network(library, cached, tmp_path):
    pulled = pull_library("user/lib", tmp_path / "mine")
    assert sums(pulled.folder) == sums(library.folder)
    assert (pulled.folder / "README.md").read_text() == "a card"
    assert not any(file.is_symlink() for file in pulled.folder.rglob("*"))
    opened = Library.from_hub("user/lib", revision=COMMIT)
    assert opened.folder.is_relative_to(tmp_path / "assets")
    assert COMMIT in str(opened.folder)
    near = opened.nearest("task0", k=2)
    assert near == library.nearest("task0", k=2)
    assert not (cached / "cache").exists()


def test_what_was_pulled_and_has_not_changed_is_not_read_again(cached, theirs, tmp_path, monkeypatch):
    read, load = [], hub.Embedding.load
    monkeypatch.setattr(hub.Embedding, "load", lambda file: read.append(Path(file)) or load(file))
    for place, folder in ((theirs, tmp_path / "mine"), ("user/lib", None)):
        first = pull_library(place, folder)
        expected = first.entries(), sums(first.folder)
        read.clear()
        again = pull_library(place, folder)
        assert (again.entries(), sums(again.folder)) == expected
        assert read == []
    changed = theirs / again.entries()[1].file
    replace(load(changed), num_skipped=1).save(changed)
    with pytest.raises(ValueError, match="different ones for 'task1'"):
        pull_library(theirs, tmp_path / "mine")


def test_only_what_makes_a_library_is_downloaded(library, cached, tmp_path, monkeypatch):
    asked, real = [], hf.snapshot_download

    def watched(**how):
        asked.append((how["repo_type"], how["revision"], how["allow_patterns"], how.get("dry_run", False)))
        return real(**how)

    monkeypatch.setattr(hf, "snapshot_download", watched)
    pull_library("user/lib", tmp_path / "mine", revision="main")
    assert asked == [
        ("dataset", "main", ["library.json", "README.md"], False),
        ("dataset", COMMIT, "embeddings/*.safetensors", True),
        ("dataset", COMMIT, "embeddings/*.safetensors", False),
    ]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("embeddings/../../../x.safetensors", 10, "names as task2vec gives them, got '../../../x.safetensors'"),
        ("embeddings/a/b.safetensors", 10, "names as task2vec gives them"),
        ("embeddings/.hidden.safetensors", 10, "names as task2vec gives them"),
        ("embeddings/x-0123456789ab.safetensors", 10**9, "at most .* bytes for"),
    ],
    ids=["traversal", "subfolder", "hidden", "large"],
)
def test_names_and_sizes_are_checked_before_the_download(cached, tmp_path, monkeypatch, name, size, message):
    real = hf.snapshot_download

    def listing(*, dry_run=False, **how):
        if dry_run:
            return [SimpleNamespace(filename=name, file_size=size)]
        assert "embeddings" not in how["allow_patterns"], "downloaded"
        return real(**how)

    monkeypatch.setattr(hf, "snapshot_download", listing)
    with pytest.raises(ValueError, match=message):
        pull_library("user/lib", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def break_by(change: str, theirs: Path, library: Library) -> None:
    first = sorted((theirs / "embeddings").iterdir())[0]
    settings = json.loads((theirs / "library.json").read_text())
    match change:
        case "no library":
            (theirs / "library.json").unlink()
        case "nothing":
            shutil.rmtree(theirs / "embeddings")
        case "no JSON":
            (theirs / "library.json").write_text("[" * 100_000)
        case "empty settings":
            (theirs / "library.json").write_text('{"format": 3, "library": {}}')
        case "many filters":
            settings["library"]["filters"] = 10**15
            (theirs / "library.json").write_text(json.dumps(settings))
        case "other filters":
            settings["library"]["filters"] += 1
            (theirs / "library.json").write_text(json.dumps(settings))
        case "other settings":
            settings["library"]["settings"]["seed"] = 7
            (theirs / "library.json").write_text(json.dumps(settings))
        case "large settings":
            (theirs / "library.json").write_text(" " * 2**20 + json.dumps(settings))
        case "half an embedding":
            first.write_bytes(first.read_bytes()[:1000])
        case "pickle":
            torch.save({"fisher": torch.ones(3)}, first)
        case "large file":
            with first.open("ab") as file:
                file.truncate(20 << 20)
        case "link":
            outside = theirs.parent / "outside.safetensors"
            first.rename(outside)
            first.symlink_to(outside)
        case "linked folder":
            (theirs / "embeddings").rename(theirs.parent / "outside")
            (theirs / "embeddings").symlink_to(theirs.parent / "outside")
        case "odd name":
            first.rename(first.with_name("a\nb.safetensors"))
        case "twice":
            shutil.copyfile(first, first.with_name("copy.safetensors"))
        case "folder":
            first.unlink()
            first.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no library", "found none: it has no library.json"),
        ("nothing", "with embeddings in .*, found none"),
        ("no JSON", "expected the settings of a library"),
        ("empty settings", "expected the settings of a library"),
        ("many filters", "1000000000000000 filters"),
        ("other filters", r"made as library.json says, .* was not: filters: \d+ against \d+"),
        ("other settings", "seed: 7 against 0"),
        ("large settings", "at most 1,048,576 bytes"),
        ("half an embedding", "damaged|truncated"),
        ("pickle", "not a safetensors file"),
        ("large file", "at most .* bytes for"),
        ("link", "got a link to"),
        ("linked folder", "got a link to"),
        ("odd name", "names as task2vec gives them"),
        ("twice", "expected a file a task"),
        ("folder", "or no file"),
    ],
)
def test_what_is_no_sound_library_is_refused_in_one_line(library, theirs, tmp_path, change, message):
    break_by(change, theirs, library)
    with pytest.raises(ValueError, match=message) as error:
        pull_library(theirs, tmp_path / "mine")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mine").exists()


def test_a_link_in_the_hubs_cache_that_leads_elsewhere_is_refused(cached, tmp_path):
    link = sorted((cached / "embeddings").iterdir())[0]
    shutil.copyfile(link, tmp_path / "outside.safetensors")
    link.unlink()
    link.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(ValueError, match="got a link to"):
        pull_library("user/lib", tmp_path / "mine")


def test_a_data_set_that_is_not_there_is_told_in_one_line(cached, tmp_path, monkeypatch):
    for repo in ("user/other", "no/such/name"):
        with pytest.raises(RuntimeError, match=f"data set '{repo}' on the hub, got: ") as error:
            pull_library(repo, tmp_path / "mine")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="expected a folder to copy"):
        pull_library("./other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'task2vec_ext\[hub\]'"):
        pull_library("user/lib", tmp_path / "mine")


@pytest.fixture
def sent(tmp_path, monkeypatch) -> SimpleNamespace:
    """What would be sent to the hub: the calls, and a folder of the files."""
    sent = SimpleNamespace(calls=[], folder=tmp_path / "sent")

    def upload_folder(self, *, folder_path, allow_patterns, **how):
        sent.calls.append(how)
        chosen = hf.utils.filter_repo_objects(
            [str(f.relative_to(folder_path)) for f in Path(folder_path).rglob("*") if f.is_file()],
            allow_patterns=allow_patterns,
        )
        for name in chosen:
            (sent.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder_path) / name, sent.folder / name)

    monkeypatch.setattr(hf.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hf.HfApi, "create_repo", lambda self, repo, **how: sent.calls.append({"repo": repo} | how))
    return sent


def test_what_is_pushed_is_a_library_again(library, sent, tmp_path):
    (library.folder / "notes.txt").write_text("not for others")
    address = push_library(library.folder, "user/lib", license="cc-by-4.0", figure=b"PNG", private=True)
    (library.folder / "notes.txt").unlink()
    assert address == "https://huggingface.co/datasets/user/lib"
    assert sent.calls[0] == {"repo": "user/lib", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert (sent.calls[1]["repo_id"], sent.calls[1]["repo_type"]) == ("user/lib", "dataset")
    assert sent.calls[1]["delete_patterns"] == "embeddings/*.safetensors"
    assert {file.name for file in sent.folder.iterdir()} == {"library.json", "README.md", "map.png", "embeddings"}
    assert sums(sent.folder) == sums(library.folder)
    assert sums(pull_library(sent.folder, tmp_path / "mine").folder) == sums(library.folder)
    everything = b"".join(file.read_bytes() for file in sent.folder.rglob("*") if file.is_file())
    assert str(tmp_path.parent).encode() not in everything


def test_the_card_is_written_from_what_is_in_the_library(library, sent):
    push_library(library.folder, "user/lib", license="cc-by-4.0")
    card = (sent.folder / "README.md").read_text("utf-8")
    assert card.startswith(
        "---\nlicense: cc-by-4.0\ntags:\n- task2vec\nviewer: false\n---\n\n# lib: Task2Vec embeddings of 3 tasks\n"
    )
    norms = sorted(entry.norm for entry in library.entries())
    assert f"| norm, nats² per weight² | {norms[0]:.4g} | {norms[1]:.4g} | {norms[2]:.4g} |" in card
    assert "| images | 12 | 12 | 12 |" in card
    assert f"| probe | `{library.probe}` |" in card
    assert "| seed | `0` |" in card
    assert "map.png" not in card
    assert 'Library.from_hub("user/lib")' in card


def test_what_cannot_be_pushed_is_told_before_anything_is_sent(library, sent, theirs):
    with pytest.raises(ValueError, match="expected the hub's name of a licence"):
        push_library(library.folder, "user/lib", license="mine: yes\nmore")
    told = replace(library.embedding("task1"), metadata={"skipped": ["image 3 (/home/me/photos/x.jpg)"]})
    told.save(theirs / "embeddings" / library.file(library.entries()[1]).name)
    with pytest.raises(ValueError, match="without paths of a machine, got some for 'task1'"):
        push_library(theirs, "user/lib")
    for file in (theirs / "embeddings").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="expected a library with embeddings"):
        push_library(theirs, "user/lib")
    assert sent.calls == []


def test_urls_and_names_are_no_paths(library):
    embedding = library.embedding("task0")
    for text in ("https://a.org/b/c", "cats/a.jpg", "image 3 (cats/a.jpg)", "and/or", "1/2", "a / b"):
        assert not hub._names_paths(replace(embedding, metadata={"text": [text]})), text
    for text in ("/home/me/a.jpg", "image 3 (/mnt/x/a.jpg)", "~/x/a", r"C:\x\a.jpg"):
        assert hub._names_paths(replace(embedding, metadata={"text": {"deep": text}})), text
