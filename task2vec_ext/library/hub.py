"""Libraries on the Hugging Face hub (extra ``hub``), as data sets. Nothing that is downloaded is trusted."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._util.atomic import atomic_path
from .._util.words import counted
from ..embedding import Embedding
from .card import card_of
from .folder import Folder
from .library import Library
from .merge import Source, same_file, source_of, take
from .settings import LibrarySettings

_HEAD = ["library.json", "README.md"]
_EMBEDDINGS = "embeddings/*.safetensors"
_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,200}\.safetensors")  # `file_stem` writes no other
_MOST_TEXT = 1 << 20  # bytes of library.json and of README.md; ours have a few thousand
_MOST_FILTERS = 1 << 20  # the largest probes have a hundred thousand
_MOST_HEADER = 16 << 20  # bytes: names of classes, images that could not be read
_BYTES_A_FILTER = 8 + 8 + 4 * 32  # F, prior, the means of 32 groups
_PATH = re.compile(r"(?:^|[\s('\"=])(?:~?/[^\s/]+/|[A-Za-z]:\\)")


def pull_library(
    repo: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None, *, revision: str | None = None
) -> Library:
    """Return a library downloaded from the Hugging Face hub.

    Every embedding is read and checked before it is put into the folder; what is there from an earlier call and has not
    changed is not read again. It can be killed at any time: the next call continues. With ``HF_HUB_OFFLINE=1`` only
    what was downloaded before is used.

    Args:
        repo: A data set, ``"user/name"``, or a folder that somebody else made: ``"./name"``, ``"/…"`` or a `Path`.
        folder: Where to; a library that is there is extended. Default: a folder of its own in the hub's cache.
        revision: Branch, tag or commit; default: the newest.

    Returns:
        The library.

    Raises:
        ValueError: If there is no library, a file is damaged, has a name or a size that no embedding has or lies
            outside, or a library in `folder` has other settings or another embedding of a task.
        RuntimeError: If it could not be downloaded.
        ImportError: If huggingface_hub is not installed.
    """
    if isinstance(repo, os.PathLike) or repo.startswith(("/", ".", "~")):
        if folder is None:
            raise ValueError(f"pull: expected a folder to copy {repo} to, got none; pass one.")
        place = Path(repo).expanduser()
        made_with = _settings(place, place.resolve())
        return _publish(place, place.resolve(), made_with, Path(folder).expanduser())
    with _hub("pull", repo) as hub:
        how: dict[str, Any] = {"repo_id": repo, "repo_type": "dataset"}
        place = Path(hub.snapshot_download(**how, revision=revision, allow_patterns=_HEAD))
    root = place.parents[1].resolve()  # its files may be links to the blobs beside it
    made_with = _settings(place, root)
    with _hub("pull", repo) as hub:
        how |= {"revision": place.name, "allow_patterns": _EMBEDDINGS}
        try:
            planned = hub.snapshot_download(**how, dry_run=True)
        except hub.errors.DryRunError:  # without the network nothing is downloaded
            planned = []
        for one in planned:
            _check_file(one.filename.removeprefix("embeddings/"), one.file_size, made_with)
        hub.snapshot_download(**how)
        folder = folder or hub.cached_assets_path("task2vec_ext", repo, place.name)
    return _publish(place, root, made_with, Path(folder).expanduser())


def push_library(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    license: str = "unknown",
    figure: bytes | None = None,
    private: bool | None = None,
) -> str:
    """Upload a library to the Hugging Face hub, and return its address.

    What is sent: ``library.json``, the embeddings, and a card that is written from them. Embeddings on the hub that the
    library has not are deleted there. After an interruption the same call continues.

    Args:
        folder: The library's folder.
        repo: The data set, ``"user/name"``; made where there is none.
        license: The hub's name of a licence, such as ``"cc-by-4.0"``.
        figure: A PNG for the card, usually a map.
        private: Whether a new data set is private; default: the account's setting.

    Returns:
        Address of the data set.

    Raises:
        ValueError: If there is no library or no embedding, files are damaged, or a task's metadata have paths of this
            machine.
        RuntimeError: If it could not be uploaded.
        ImportError: If huggingface_hub is not installed.
    """
    library = Library(folder)
    files = source_of("push", library).files
    if not files or not (library.folder / "library.json").is_file():
        raise ValueError(
            f"push: expected a library with embeddings in the format of 0.3, {library.folder} is none; make one of it: "
            f"task2vec library merge {library.folder} -o DIR."
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise ValueError(f"push: expected the hub's name of a licence, such as cc-by-4.0, got {license!r}.")
    if told := [name for name, file in files.items() if _names_paths(Embedding.load(file))]:
        raise ValueError(
            f"push: expected metadata without paths of a machine, got some for {', '.join(map(repr, told))} "
            "(task2vec info shows them); embed these again from a folder, without the images that cannot be read."
        )
    with tempfile.TemporaryDirectory() as made, _hub("push", repo) as hub:
        staged = Path(made)
        (staged / "README.md").write_text(card_of(library, repo, license, has_figure=figure is not None), "utf-8")
        if figure is not None:
            (staged / "map.png").write_bytes(figure)
        shutil.copyfile(library.folder / "library.json", staged / "library.json")
        (staged / "embeddings").mkdir()
        for file in files.values():
            (staged / "embeddings" / file.name).symlink_to(file.resolve())
        api = hub.HfApi()
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=staged,
            allow_patterns=[*_HEAD, "map.png", _EMBEDDINGS],
            delete_patterns=_EMBEDDINGS,
            commit_message=counted(len(files), "task"),
        )
    return f"https://huggingface.co/datasets/{repo}"


@contextmanager
def _hub(who: str, repo: str) -> Iterator[Any]:
    """Yield huggingface_hub; its errors become one line."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ImportError(f"{who}: expected huggingface_hub, found none; pip install 'task2vec_ext[hub]'.") from None
    known = (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.EntryNotFoundError, ConnectionError)
    try:
        yield huggingface_hub
    except (*known, huggingface_hub.errors.HFValidationError) as error:
        why = " ".join(str(error).split())
        raise RuntimeError(f"{who}: expected to reach the data set {repo!r} on the hub, got: {why}") from error


def _settings(place: Path, root: Path) -> LibrarySettings:
    """Return what a library that somebody else made is made with."""
    if not (file := place / "library.json").is_file():
        raise ValueError(f"pull: expected a library in {place}, found none: it has no library.json.")
    _check_inside(file, root, _MOST_TEXT)
    try:
        made_with = Folder(place).made_with()
        assert made_with is not None
        if type(made_with.filters) is not int or not 0 < made_with.filters <= _MOST_FILTERS:
            raise ValueError(f"{made_with.filters!r} filters")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"pull: expected the settings of a library in {file}, got: {error!s}") from error
    return made_with


def _publish(place: Path, root: Path, made_with: LibrarySettings, folder: Path) -> Library:
    """Put the embeddings of a place that are new into a library's folder, once all of these are known to be sound."""
    files: dict[str, Path] = {}
    there, known = Folder(folder).embeddings, 0
    for file in sorted((place / "embeddings").glob("*.safetensors")):
        _check_inside(file, root)
        _check_file(file.name, file.stat().st_size, made_with)
        if same_file(file, there / file.name):  # taken, and checked, by an earlier call
            known += 1
            continue
        embedding = Embedding.load(file)
        if changes := made_with.changes(embedding):
            raise ValueError(f"pull: expected embeddings made as library.json says, {file} was not: {changes[0]}.")
        if files.setdefault(embedding.name, file) is not file:
            raise ValueError(f"pull: expected a file a task, got {files[embedding.name]} and {file}.")
    if not files and not known:
        raise ValueError(f"pull: expected a library with embeddings in {place}, found none.")
    library = take("pull", [Source(str(place), made_with, files)], folder)
    card = place / "README.md"
    if card.is_file() and not (folder / "README.md").exists():
        _check_inside(card, root, _MOST_TEXT)
        with atomic_path(folder / "README.md") as new:
            shutil.copyfile(card, new)
    return library


def _check_file(name: str, size: int, made_with: LibrarySettings) -> None:
    """Refuse a file whose name or size no embedding of these settings has."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"pull: expected embeddings with names as task2vec gives them, got {name!r}.")
    if size > (most := _MOST_HEADER + _BYTES_A_FILTER * made_with.filters):
        raise ValueError(
            f"pull: expected embeddings of at most {most:,} bytes for {made_with.filters:,} filters, {name} has "
            f"{size:,}."
        )


def _check_inside(file: Path, root: Path, most: int | None = None) -> None:
    """Refuse what is no regular file below the root, or larger than text is."""
    real = file.resolve()
    if not real.is_relative_to(root) or not real.is_file():
        raise ValueError(f"pull: expected a file in its own folder at {file}, got a link to {real}, or no file.")
    if most is not None and real.stat().st_size > most:
        raise ValueError(f"pull: expected at most {most:,} bytes in {file}, got {real.stat().st_size:,}.")


def _names_paths(embedding: Embedding) -> bool:
    """Whether an embedding tells where something lies on the machine that made it."""
    return any(_PATH.search(text) for text in _texts([embedding.name, vars(embedding.probe), embedding.metadata]))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
