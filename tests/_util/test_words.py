"""Every public argument that is one of a few words refuses another word, and says which there are."""

import inspect
import re
from dataclasses import is_dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Literal, get_origin

import pytest
import torch
from synthetic import problem

import task2vec_ext
from task2vec_ext import EmbedSettings, HeadSettings, Preprocess, VariationalSettings, build_library, fisher_embed
from task2vec_ext._util.words import check_word
from task2vec_ext.atlas import write_atlas
from task2vec_ext.data import Loader, as_task, batches
from task2vec_ext.distance import cross_distances, distance_matrix, neighbour_ranks
from task2vec_ext.embed import Work, cross_diversity, diversity
from task2vec_ext.experts import ExpertFeatures, Recipe, classifier_error, transfer_errors
from task2vec_ext.experts.recipe import as_recipe
from task2vec_ext.fisher import cotangents, fit_head
from task2vec_ext.kernels import filter_grad_sq
from task2vec_ext.losses import Regression, as_loss
from task2vec_ext.plot import map_positions, plot_map
from task2vec_ext.selection import Distance, Model2Vec

EMBEDDINGS = [task.embedding for task in problem(E=2, T=4)[1].values()]
TASK = as_task([(torch.rand(3, 52, 52), i % 2) for i in range(4)], name="t")
FEATURES = ExpertFeatures(torch.rand(4, 3), torch.full((4, 2), 0.5), torch.tensor([0, 1, 0, 1]))
PLANE = torch.rand(1, 2, 4, 4)
NEAR = torch.rand(3, 3)
_MODULES = [f"task2vec_ext.{name}" for name in ("settings", "data.loader", "distance.rules", "experts.recipe")]

# Callable and argument -> a call with a word for it.
CALLS = {
    "EmbedSettings.loss": lambda word: EmbedSettings(loss=word),
    "EmbedSettings.estimator": lambda word: EmbedSettings(estimator=word),
    "fisher_embed.loss": lambda word: fisher_embed(TASK, "tiny", loss=word),
    "fisher_embed.estimator": lambda word: fisher_embed(TASK, "tiny", estimator=word),
    "EmbedSettings.dtype": lambda word: EmbedSettings(dtype=word),
    "fisher_embed.dtype": lambda word: fisher_embed(TASK, "tiny", dtype=word),
    "fisher_embed.on_error": lambda word: fisher_embed(TASK, "tiny", on_error=word),
    "build_library.on_error": lambda word: build_library([TASK], "/nowhere", "tiny", on_error=word),
    "Work.on_error": lambda word: Work(on_error=word),
    "batches.on_error": lambda word: batches(TASK, [0], None, batch_size=1, on_error=word),
    "Loader.batches.on_error": lambda word: Loader(TASK, None, batch_size=1).batches([0], on_error=word),
    "HeadSettings.method": lambda word: HeadSettings(word),
    "fit_head.method": lambda word: fit_head(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]), 2, method=word),
    "classifier_error.method": lambda word: classifier_error(FEATURES, FEATURES, method=word),
    "transfer_errors.method": lambda word: transfer_errors({}, [], "f", method=word, fine_tuning="quick"),
    "Recipe.head": lambda word: Recipe(word, 1, 0.1, "step"),
    "Recipe.schedule": lambda word: Recipe("adam", 1, 0.1, word),
    "as_recipe.recipe": as_recipe,
    "VariationalSettings.objective": lambda word: VariationalSettings(objective=word),
    "VariationalSettings.noise": lambda word: VariationalSettings(noise=word),
    "Preprocess.interpolation": lambda word: Preprocess(interpolation=word),
    "Regression.noise": lambda word: Regression(noise=word),
    "as_loss.loss": as_loss,
    "distance_matrix.distance": lambda word: distance_matrix(EMBEDDINGS, word),
    "cross_distances.distance": lambda word: cross_distances(EMBEDDINGS, EMBEDDINGS, word),
    "neighbour_ranks.distance": lambda word: neighbour_ranks(EMBEDDINGS, 0, word),
    "diversity.distance": lambda word: diversity(EMBEDDINGS, word),
    "cross_diversity.distance": lambda word: cross_diversity(EMBEDDINGS, EMBEDDINGS, word),
    "Distance.distance": lambda word: Distance(distance=word),
    "Model2Vec.form": lambda word: Model2Vec(form=word),
    "write_atlas.distance": lambda word: write_atlas(EMBEDDINGS, "/nowhere", distance=word),
    "map_positions.method": lambda word: map_positions(NEAR, word),
    "plot_map.method": lambda word: plot_map(NEAR, ["a", "b", "c"], method=word),
    "filter_grad_sq.route": lambda word: filter_grad_sq(PLANE, PLANE, (2, 2, 1, 1), route=word),
    "cotangents.estimator": lambda word: list(cotangents(word, NEAR, NEAR, NEAR)),
    "filter_grad_sq.padding": lambda word: filter_grad_sq(PLANE, PLANE, (2, 2, 1, 1), padding=word),
}  # fmt: skip
ELSEWHERE = {  # the next test, their own tests, or a function in CALLS that checks for them
    *("Library.nearest.distance", "EmbeddingFiles.nearest.distance", "Entry.state", "load_probe.preprocess"),
    *("Probe.dtype", "Probe.computing_in.dtype"),  # of EmbedSettings
    *("per_sample_fisher.estimator", "sum_fisher.estimator", "local_noise.padding"),
}


@pytest.mark.parametrize("where", CALLS)
def test_another_word_is_refused_by_name(where):
    with pytest.raises((ValueError, TypeError), match=r"expected .*foo|one of"):
        CALLS[where]("foo")


def test_another_word_is_refused_by_a_library(tmp_path):
    library = build_library([TASK], tmp_path, "tiny", progress=False)
    for nearest in (library.nearest, task2vec_ext.load_embeddings(tmp_path).nearest):
        for word in ("asym", "foo", None):
            with pytest.raises(ValueError, match=rf"expected distance to be one of sym, .*; got {word!r}"):
                nearest("t", distance=word)


def test_every_public_argument_of_a_few_words_is_tried():
    rooms = [import_module(f"task2vec_ext.{room.name}") for room in iter_modules(task2vec_ext.__path__) if room.ispkg]
    known = [*rooms, *map(import_module, _MODULES)]
    words = {name for room in known for name, value in vars(room).items() if get_origin(value) is Literal}
    pattern = re.compile(rf"\b({'|'.join([*sorted(words), 'Literal'])})\b")
    public = {name: getattr(room, name) for room in rooms if room.__name__ != "task2vec_ext.cli" for name in _all(room)}
    methods = {
        f"{name}.{method}": call
        for name, kind in public.items()
        if inspect.isclass(kind)
        for method, call in vars(kind).items()
        if inspect.isfunction(call) and not method.startswith("_")
    }
    found = {
        f"{name}.{argument.name}"
        for name, call in (public | methods).items()
        if inspect.isfunction(call) or is_dataclass(call)
        for argument in inspect.signature(call).parameters.values()
        if pattern.search(str(argument.annotation))
    }
    assert len(found) > 20
    assert found - CALLS.keys() - ELSEWHERE == set()


def _all(room):
    return getattr(room, "__all__", ())


@pytest.mark.parametrize("value", ["b", None, ["a"], 1])
def test_the_message_has_the_words(value):
    with pytest.raises(ValueError, match=r"^who: expected what to be one of a, c; got "):
        check_word("who", "what", value, Literal["a", "c"])
    check_word("who", "what", "c", Literal["a", "c"])
