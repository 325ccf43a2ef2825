"""The file of an embedding or a reference: safetensors, with a record of all else and a checksum over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .._util.atomic import atomic_path
from ..settings import settings_of_format_2

FORMAT_VERSION = 4  # of an embedding; raised where older versions would misread a file
What = Literal["embedding", "reference"]
_VERSIONS: dict[What, int] = {"embedding": FORMAT_VERSION, "reference": 1}
_METADATA_KEY = "task2vec_ext"  # one key only: safetensors does not promise an order of several
TENSORS = ("fisher", "prior", "group_means")
_BLANK_DIGEST = "0" * 64
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
_RENAMED = {"num_classes": "num_outputs", "accuracy": "score"}  # fields of the head in files of format 1
_OF_HEAD_SETTINGS = ("method", "l2", "class_balanced")  # which files of format 2 had among the head's fields


def write_record(path: Path, fields: dict[str, Any], tensors: Mapping[str, Tensor | None]) -> None:
    """Write the file of an embedding, atomically; the same content always gives the same bytes.

    Args:
        path: The file.
        fields: What JSON can hold.
        tensors: The tensors; those that are None are left out.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded("embedding", fields, tensors)[0])


def read_record(path: Path) -> dict[str, Any]:
    """Return the fields and tensors of an embedding's file, in the form of the newest format.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no embedding, damaged, or of a newer version.
    """
    record, tensors = decoded("embedding", path)
    fields = record["embedding"] if record["format"] >= 3 else _from_format_2(record["embedding"])
    return fields | {name: tensors[name] for name in TENSORS if name in tensors}


def encoded(what: What, fields: dict[str, Any], tensors: Mapping[str, Tensor | None]) -> tuple[bytes, str]:
    """Return a file's bytes, and the checksum in it; the same content always gives the same.

    Args:
        what: What it holds.
        fields: What JSON can hold.
        tensors: The tensors; those that are None are left out.
    """
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def with_digest(digest: str) -> bytes:
        text = to_json({"format": _VERSIONS[what], "sha256": digest, what: fields})
        return safetensors.torch.save(kept, metadata={_METADATA_KEY: text})

    digest = hashlib.sha256(with_digest(_BLANK_DIGEST)).hexdigest()
    return with_digest(digest), digest


def to_json(value: dict[str, Any] | list[Any]) -> str:
    """Return JSON in ASCII, always the same for one value; a name from a file system that is no UTF-8 survives."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Embedding: expected fields that JSON can hold (str, int, bool, finite float, list, dict), got "
            f"something else ({error}); convert it first."
        ) from error


def _from_format_2(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file of format 1 or 2, which had one dictionary for settings, probe and task: ``recipe``."""
    recipe, head = fields.pop("recipe"), fields["head"]
    fields["probe"] |= {"head": recipe.pop("head_layer", ""), "preprocess": recipe.pop("preprocess", None)}
    fields["head"] = {_RENAMED.get(key, key): value for key, value in head.items() if key not in _OF_HEAD_SETTINGS}
    fields |= {
        "prior_scale": recipe.pop("prior_scale", None),
        "epoch_nll": recipe.pop("variational_nll", ()),
        "task_digest": recipe.pop("task_digest", None),
        "metadata": recipe.pop("task_metadata", None) or {},
        "version": recipe.pop("version", ""),
        "settings": settings_of_format_2(recipe, {key: head[key] for key in _OF_HEAD_SETTINGS}),
    }
    return fields


def decoded(what: What, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the record and the tensors of a file that `encoded` gave, once every byte of it is known to be sound.

    Args:
        what: What it is expected to hold.
        path: The file.

    Raises:
        ValueError: If it holds something else, is damaged, or is of a newer version.
    """
    who = f"{what.capitalize()}.load"
    if not path.is_file():
        found = "a folder; name one file in it" if path.is_dir() else "no such file"
        raise ValueError(f"{who}: expected the {what}'s file at {path}, found {found}.")
    with path.open("rb") as file:
        # Only the header of a foreign file is read: it may be any size.
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= size <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise ValueError(f"{who}: {path} is not a safetensors file, or it is truncated.")
        header = file.read(size)
        try:
            text = json.loads(header)["__metadata__"][_METADATA_KEY]
        except (ValueError, RecursionError):
            raise ValueError(f"{who}: {path} is not a safetensors file, or it is damaged.") from None
        except (KeyError, TypeError):
            raise _foreign(what, path) from None
        raw = start + header + file.read()
    damaged = ValueError(f"{who}: {path} is damaged: the checksum does not fit; make it again.")
    try:
        record = json.loads(text)
        version, digest = record["format"], record["sha256"]
        foreign = record.keys() & _VERSIONS.keys() - {what}
        newer = version > _VERSIONS[what]
        written = digest.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if foreign:
        raise _foreign(what, path)
    if newer:
        raise ValueError(
            f"{who}: {path} was written by a newer task2vec_ext (format {version}; this one reads "
            f"up to {_VERSIONS[what]}): upgrade."
        )
    # save() hashed the file with a blank in the digest's place. Of the same length: nothing else is blanked.
    blank = raw.replace(written, _BLANK_DIGEST.encode()) if len(written) == len(_BLANK_DIGEST) else b""
    if hashlib.sha256(blank).hexdigest() != digest:
        raise damaged
    try:
        return record, safetensors.torch.load(raw)
    except SafetensorError:
        raise damaged from None


def _foreign(what: What, path: Path) -> ValueError:
    who = what.capitalize()
    return ValueError(f"{who}.load: {path} was not written by {who}.save.")
