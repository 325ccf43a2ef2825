"""``task2vec env``: what a bug report needs to say of the machine."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from importlib import metadata

_NOT_FOR_USE = ("test", "docs", "dev", "bench")  # extras of those who work on the package
_PATH = re.compile(r"(?:[A-Za-z]:)?[/\\](?:[^:;'\",()\n]*[/\\])?[^\s:;'\",()]*")  # folders' names may have blanks


def env() -> None:
    """Print what a bug report needs, as Markdown to copy.

    It has versions, hardware, threads and extras, and no paths and no names of people.
    """
    facts: dict[str, Callable[[], str]] = {
        "task2vec_ext": _package,
        "kernels": _kernels,
        "Python": lambda: f"{platform.python_implementation()} {platform.python_version()}",
        "system": lambda: f"{platform.system()} {platform.release()}, {platform.machine()}, {_libc()}",
        "torch": _torch,
        "GPU": _gpu,
        "CPU": _cpu,
        "packages": _packages,
    }
    print("| | |\n|---|---|")
    for name, fact in facts.items():
        print(f"| {name} | {_said(fact)} |")


def _said(fact: Callable[[], str]) -> str:
    """Return a fact, or why there is none: what is broken is what the report is about."""
    try:
        return fact().replace("|", "/")
    except Exception as error:
        words = _PATH.sub("…", f"{type(error).__name__}: {error}")
        return f"failed: {' '.join(words.split())}".replace("|", "/")


def _package() -> str:
    found = metadata.distribution("task2vec_ext")
    tags = re.findall(r"^Tag: (.+)$", found.read_text("WHEEL") or "", re.M)
    editable = json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable", False)
    own = any("-linux_" in tag for tag in tags)  # a wheel for others says which Linux: manylinux
    how = "editable" if editable else "from source" if own else "wheel"
    return f"{found.version}, {how}, {', '.join(tags)}"


def _kernels() -> str:
    from ..kernels import build_info

    built = build_info()
    cuda = f"CUDA {built.cuda_version} for {', '.join(built.cuda_architectures or ())}"
    return f"{built.compiler}, {cuda if built.cuda_version else 'no CUDA'}, OpenMP {built.openmp or 'off'}"


def _libc() -> str:
    return " ".join(platform.libc_ver()) or "C library unknown"


def _torch() -> str:
    import torch
    import torchvision

    return f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, torchvision {torchvision.__version__}"


def _gpu() -> str:
    import torch
    from torch.utils import collect_env

    driver = collect_env.get_nvidia_driver_version(collect_env.run)
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = [f"{gpu.name} ({gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB)" for gpu in found]
    return f"{', '.join(gpus) or 'none'}; driver {driver or 'none'}"


def _cpu() -> str:
    import torch

    from .. import _C

    best, theirs = _C.cpu.instruction_sets()[0], torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, kernels for {best} (torch: {theirs})"


def _packages() -> str:
    """Return what the package needs or can use, with the versions that are here."""
    names = []
    for need in metadata.requires("task2vec_ext") or ():
        name, extra = re.match(r"[\w.-]+", need), re.search(r"extra == ['\"]([\w-]+)", need)
        if name and not (extra and extra[1] in _NOT_FOR_USE) and name[0] != "task2vec_ext":
            names.append(name[0])
    return ", ".join(f"{name} {_version(name)}" for name in dict.fromkeys(names))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "–"
