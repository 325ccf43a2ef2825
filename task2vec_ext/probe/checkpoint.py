"""Weights from files: read without running code, whatever their ending; fitted to a network's names."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._util.warnings import Task2VecWarning
from .layers import head_layer, within

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts keep the weights
_SILENT = re.compile(r"(module\.|_orig_mod\.)*")  # prefixes left by DataParallel and torch.compile: nothing to decide
_CHOSEN = re.compile(r"(^|\.)(encoder_q|online_\w+)\.")  # of networks with a moving average, the one trained
_RENAMED = (  # torchvision's files of its DenseNets and ViTs are older than the names in its code
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
_FOREIGN = (  # first bytes, what the file is
    (b"version https://git-lfs", "a Git LFS pointer instead of the weights; run git lfs pull, or download the file"),
    (b"<", "a web page (HTML or XML) instead of the weights; download the file itself, not the page that shows it"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a rar archive; unpack it first"),
    (b"\x89HDF", "HDF5, as Keras writes it; convert it to a torch state_dict"),
    (b"\x93NUMPY", "a NumPy array; a checkpoint is a dictionary of tensors, saved with torch.save"),
    (b"GGUF", "GGUF, which holds no torch network; use a .safetensors or .pth file"),
    (b"{", "JSON text, such as a configuration or an index of parts, instead of the weights"),
    (b"[", "JSON text instead of the weights"),
)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return name → weight of a ``.safetensors`` or ``.pth`` file, on the CPU, without running any of its code.

    The file's first bytes say what it is, not its ending. Wrappers such as ``{"state_dict": …}`` are taken off.
    """
    file = Path(path)
    if not file.is_file():
        found = "a folder; name the file in it" if file.is_dir() else "no such file; check the path"
        raise ValueError(f"read_checkpoint: expected a checkpoint at {file}, found {found}.")
    content = _load(file)
    while isinstance(content, dict) and not _is_state(content):
        known = [key for key in _WRAPPERS if isinstance(content.get(key), dict)][:1]
        inner = known or [key for key in content if _is_state(content[key])]
        if len(inner) != 1:
            break
        content = content[inner[0]]
    if not _is_state(content):
        got = (
            f"the entries {', '.join(map(repr, [*content][:8]))}"
            if isinstance(content, dict)
            else type(content).__name__
        )
        raise ValueError(
            f"read_checkpoint: expected a dictionary of tensors in {file}, got {got}; save one module.state_dict()."
        )
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _is_state(content: Any) -> bool:
    """Whether this is weights by name; counters and metadata may lie among them."""
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    return named and any(isinstance(value, torch.Tensor) for value in content.values())


def _load(file: Path) -> Any:
    with file.open("rb") as opened:
        start = opened.read(512)
    try:
        if problem := _problem(file, start):
            raise ValueError(problem)
        if _is_safetensors(start):
            from safetensors.torch import load_file

            return load_file(file)
        with file.open("rb") as opened:  # given the path, torch.load would go by its ending
            return torch.load(opened, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # Without the cause: torch's own text advises to load the file unsafely.
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        why = (
            f"it holds the Python object {found[1]}, which could run code; where it was made, save the weights alone: "
            "torch.save(module.state_dict(), FILE)"
            if found
            else "it is damaged or truncated, or holds objects other than tensors: save module.state_dict() instead"
        )
    except ValueError as error:
        why = str(error)
    except Exception as error:  # there is no list of what a damaged file can raise
        why = f"it is damaged or truncated ({type(error).__name__}); download or copy it again"
    raise ValueError(f"read_checkpoint: {file} could not be read: {why}.") from None


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and not start.startswith(b"PK")


def _problem(file: Path, start: bytes) -> str | None:
    """Return what the file is, if it is no checkpoint."""
    if not start:
        return "it is empty; download or copy it again"
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(file):
            return "it is a truncated zip archive; download or copy it again"
        with zipfile.ZipFile(file) as archive:
            names, unpacked = archive.namelist(), sum(one.file_size for one in archive.infolist())
        if unpacked > 4 * file.stat().st_size:  # torch does not compress: this would fill the memory
            return f"it unpacks to {unpacked:,} bytes, which torch.save never does; save it again with torch.save"
        if any(name.endswith("constants.pkl") for name in names):
            return "it is TorchScript; save its weights: torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        if not any(name.endswith("data.pkl") for name in names):
            return f"it is a zip archive of {', '.join(names[:3])}, not a checkpoint; unpack or convert it first"
        return None
    if start.startswith(b"\x80") or _is_safetensors(start):
        return None
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what in _FOREIGN:
        if (text if magic.isascii() else start).startswith(magic):
            return f"it is {what}"
    if start[257:262] == b"ustar":
        return "it is a tar archive; unpack it first"
    readable = text[:40].decode("ascii", "ignore")
    if readable.isprintable() and len(readable) >= len(text[:40]) > 0:
        return f"it is text that begins with {readable!r}, not a checkpoint"
    return f"it is neither .safetensors nor .pth: its first bytes are {start[:8].hex(' ')}; it may be damaged"


def load_checkpoint(
    module: nn.Module, path: str | os.PathLike[str], state: dict[str, Tensor], who: str, head: str, *, owned: bool
) -> bool:
    """Load what `read_checkpoint` returned into a module; return whether that gave the head its weights.

    The head is refitted: it may be missing, and have other classes, where the package made the module (`owned`). One
    prefix that all other names share, such as ``model.``, is taken off.
    """
    who = f"{who} with {os.fspath(path)}"
    layer = head_layer(module, head)
    state, prefix = _fitted(module, state, who, None if layer is None else head)
    described = f"{who}, prefix {prefix!r} taken off," if prefix else who
    given = f"{head}.weight" in state
    if layer is None:
        load_state(module, state, described)
        return False
    own = {f"{head}.{key}": value for key, value in layer.state_dict().items()}
    same = {key: state[key].shape for key in state if within(key, head)} == {key: own[key].shape for key in own}
    if given and not same and owned and isinstance(layer, nn.Linear):
        weight, bias = state[f"{head}.weight"], f"{head}.bias" in state
        if weight.ndim == 2 and weight.shape[1] == layer.in_features:
            module.set_submodule(head, nn.Linear(layer.in_features, len(weight), bias).train(layer.training))
            same = True
    if not same:
        state = {key: value for key, value in state.items() if not within(key, head)} | own
    load_state(module, state, described)
    return same


def _fitted(module: nn.Module, state: dict[str, Tensor], who: str, head: str | None) -> tuple[dict[str, Tensor], str]:
    """Return the state by the module's names, and the prefix that was taken off."""
    every = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    body = {name for name in every if head is None or not within(name, head)}
    for names in (state, _renamed(state)):
        # Prefix -> how many of the module's names follow it.
        fits = Counter(key[:cut] for key in names for cut in _cuts(key) if key[cut:] in body)
        whole = [prefix for prefix, count in fits.items() if count == len(body)]
        if whole:
            break
    else:
        names = state
        whole = [prefix for prefix, _ in fits.most_common(1) if not fits[""]]  # for a message about what is missing
    if "" in whole or not whole:
        return _without_removed(module, names), ""
    chosen = [prefix for prefix in whole if _CHOSEN.search(prefix)] if len(whole) > 1 else whole
    if len(chosen) != 1:
        raise ValueError(
            f"load_probe: expected the weights of one network for {who}, got several, whose names begin with "
            f"{', '.join(map(repr, sorted(whole)))}; save one of them alone."
        )
    (prefix,) = chosen
    inside = {key.removeprefix(prefix): value for key, value in names.items() if key.startswith(prefix)}
    others = [key for key in names if not key.startswith(prefix)]
    if fits[prefix] == len(body) and (others or not _SILENT.fullmatch(prefix)):
        also = f"; left out {len(others)} others ({', '.join(others[:3])}, …)" if others else ""
        warnings.warn(
            f"load_probe: took the weights for {who} from the names that begin with {prefix!r}{also}",
            Task2VecWarning,
            stacklevel=5,
        )
    return _without_removed(module, inside), prefix


def _cuts(key: str) -> list[int]:
    """Return where a name's parts begin."""
    return [0, *(place + 1 for place, letter in enumerate(key) if letter == ".")]


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for old, new in _RENAMED:
        state = {old.sub(new, name): value for name, value in state.items()}
    return state


def _without_removed(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the weights of a head that the network has an ``nn.Identity`` for."""
    removed = [name for name, child in module.named_modules() if name and isinstance(child, nn.Identity)]
    return {key: value for key, value in state.items() if not any(within(key, name) for name in removed)}


def load_state(module: nn.Module, state: dict[str, Tensor], who: str) -> None:
    """Load `state` into `module`, once it is known to fit and to be finite; `who` names the network in messages."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{label}: {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for label, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise ValueError(
            f"load_probe: expected a checkpoint that fits {who}; {'; '.join(problems)}. Is it of another architecture?"
        )
    check_finite(state, who)
    module.load_state_dict(state, strict=False)  # strict but for counters that old checkpoints lack


def check_finite(state: dict[str, Tensor], who: str) -> None:
    """Raise ValueError if a weight is NaN or infinite."""
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"load_probe: expected finite weights for {who}, got NaN or infinity in {name}.")
