"""Specs: one line of text that names tasks."""

from __future__ import annotations

import difflib
import glob
import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..folder import is_junk
from ..targets import Target
from ..task import as_task
from .cub import cub
from .fashion import deepfashion, imaterialist
from .inaturalist import inaturalist
from .lazy import Tasks
from .named import hugging_face, torchvision
from .table import table


def folder(path: str, *, target: Target | None = None) -> Tasks:
    """Return the task of a folder of class folders, or the tasks of several, named after the folders.

    Args:
        path: The folder, or a pattern such as ``data/*``.
        target: What the labels are; default: classes.

    Raises:
        ValueError: If there is no such folder, or it is not laid out as expected.
    """
    paths = [path]
    if not os.path.exists(path) and glob.has_magic(path):
        paths = sorted(
            found for found in glob.glob(path) if os.path.isdir(found) and not is_junk(os.path.basename(found))
        )
        if not paths:
            raise ValueError(f"folder: expected folders that match {path}, got none; correct the pattern.")
    tasks = [as_task(found, target=target) for found in paths]  # listed now: a wrong layout is an error before any work
    return Tasks([task.name for task in tasks], tasks.__getitem__)


# Name before the colon of a spec -> what returns its tasks.
SOURCES: Mapping[str, Callable[..., Tasks]] = {
    "folder": folder,
    "table": table,
    **{f"inat{year}": partial(inaturalist, year) for year in (2017, 2018, 2019, 2021)},
    "cub": cub,
    "imat2018": imaterialist,
    "deepfashion": deepfashion,
    "torchvision": torchvision,
    "hf": hugging_face,
}

_SPEC = re.compile(r"(?:(?P<source>\w+):)?(?P<what>.*?)(?:\?(?P<options>\w+=[^&?]*(?:&\w+=[^&?]*)*))?", re.DOTALL)
_NAME = re.compile(r"(?P<name>[^=:?/\\]+)=(?P<spec>.+)", re.DOTALL)
_GENERAL = {"max_value": 0.0}  # options of every source
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def tasks_from(*specs: str, target: Target | None = None) -> Tasks:
    """Return the tasks that specs name, one spec after the other, each made when it is asked for. No image is read.

    Args:
        *specs: ``SOURCE:WHAT?OPTION=VALUE&OPTION=VALUE``, such as ``cub:CUB_200_2011``,
            ``inat2018:inat?level=family&min_images=20``, ``table:images.csv?label=species``,
            ``torchvision:CIFAR10?root=data&train=false``. Options are the arguments of the source's function, and
            ``max_value`` (see `as_task`). Without a source, the spec is the path of a folder of class folders.
            ``NAME=SPEC`` names the task; of several tasks, NAME comes before the name of each.
        target: What the labels are; default: what the source says.

    Raises:
        ValueError: If a source or an option is unknown, data are missing, or two tasks have the same name.
        ImportError: If a source needs a package that is not installed.
    """
    return Tasks.joined([_named(os.fspath(spec), target) for spec in specs])


def _named(spec: str, target: Target | None) -> Tasks:
    """The tasks of a spec, under the name that it may begin with."""
    match = None if os.path.exists(spec) else _NAME.fullmatch(spec)
    if match is None:
        return _tasks(spec, target)
    tasks, name = _tasks(match["spec"], target), match["name"]
    names = (name,) if len(tasks) == 1 else tuple(f"{name} {own}" for own in tasks.names)
    return Tasks(names, lambda i: as_task(tasks[i], name=names[i]))


def _tasks(spec: str, target: Target | None) -> Tasks:
    if os.path.isdir(spec):  # whatever characters its name has
        return folder(spec, target=target)
    match = _SPEC.fullmatch(spec)
    assert match is not None  # the only group that is not optional matches anything
    source, what = match["source"] or "folder", match["what"]
    if source not in SOURCES:
        known_sources = ", ".join(SOURCES)
        raise ValueError(f"tasks_from: expected one of {known_sources} before the colon of {spec!r}, got {source!r}.")
    if not what:
        raise ValueError(f"tasks_from: expected a path or name after {source}:, got nothing.")
    make = SOURCES[source]
    known = _options(make)
    if source == "torchvision":  # its classes take the options; of one that does not exist, `torchvision` says so
        datasets = importlib.import_module("torchvision.datasets")
        known = _options(getattr(datasets, what, datasets.VisionDataset))
    known = {key: default for key, default in known.items() if key != "target"} | _GENERAL
    options: dict[str, Any] = {}
    for pair in match["options"].split("&") if match["options"] else []:
        key, value = pair.split("=", 1)
        if key in options:
            raise ValueError(f"tasks_from: expected every option once in {spec!r}, got {key} twice.")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ValueError(
                f"tasks_from: expected options of {source} ({', '.join(known)}) in {spec!r}, got {key}"
                + (f"; did you mean {near[0]}?" if near else ".")
            )
        options[key] = _value(key, value, known[key], spec)
    white = options.pop("max_value", None)
    if target is not None and make is folder:
        options["target"] = target
    tasks = make(what, **options)
    if target is None and white is None:
        return tasks
    return Tasks(tasks.names, lambda i: as_task(tasks[i], target=target, max_value=white))


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments that can be given by name, with their defaults; a function's first one is no option."""
    parameters = list(inspect.signature(function).parameters.values())
    if not inspect.isclass(function):
        parameters = parameters[1:]
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _value(key: str, text: str, default: Any, spec: str) -> Any:
    """Read an option as its default's type: a truth value, a whole number or text."""
    if isinstance(default, bool):
        if text.lower() not in _TRUTH:
            raise ValueError(f"tasks_from: expected {key}=true or {key}=false in {spec!r}, got {text!r}.")
        return _TRUTH[text.lower()]
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"tasks_from: expected a number for {key} in {spec!r}, got {text!r}.") from None
    if isinstance(default, int):
        if not text.isdecimal():
            raise ValueError(f"tasks_from: expected a whole number for {key} in {spec!r}, got {text!r}.")
        return int(text)
    return text
