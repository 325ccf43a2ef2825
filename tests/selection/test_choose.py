"""The order, the places and the sentence."""

import dataclasses
import math
import re

import pytest
import torch
from synthetic import embedding, problem

from task2vec_ext import Reference, distance_matrix, neighbour_ranks
from task2vec_ext.selection import SELECTORS, Distance, ExpertFacts, Model2Vec, TaskFacts
from task2vec_ext.selection.choose import choose


def noisy(spread: float, tasks: int = 4) -> list[TaskFacts]:
    """Tasks whose embeddings are means of 32 groups of images that differ by `spread`."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for t in range(tasks):
        centre = torch.randn(40, generator=generator).exp()
        groups = centre * (spread * torch.randn(32, 40, generator=generator)).exp()
        mean = groups.double().mean(0)
        facts = dataclasses.replace(embedding(mean, f"t{t}"), num_samples=32, group_means=groups)
        found.append(TaskFacts(f"t{t}", facts, num_images=32))
    return found


@pytest.mark.parametrize(("distance", "alpha"), [("asym", 0.15), ("asym", None), ("library_correlation", 0.15)])
def test_places_and_errors_are_those_of_the_distances(distance, alpha):
    tasks = noisy(0.2)
    how = {"reference": Reference.of([task.embedding for task in noisy(0.5, 12)])} if "library" in distance else {}
    experts = [ExpertFacts(task.name, task) for task in tasks[:3]]
    selector = Distance(distance=distance, alpha=alpha, **how)
    chosen = choose(tasks[3], [*experts, ExpertFacts("stranger")], selector)
    every = [task.embedding for task in tasks]
    value = distance_matrix(every, distance, with_error=True, **how)
    ranks = neighbour_ranks(every, 3, distance, **how)
    for one in chosen.ranked[:3]:
        index = int(one.name[1:])
        assert one.score == pytest.approx(-float(value.value[index, 3]))
        assert one.standard_error == pytest.approx(float(value.standard_error[index, 3]))
        assert (one.best, one.worst) == (int(ranks.low[index]), int(ranks.high[index]))
    assert [one.score for one in chosen.ranked[:3]] == sorted((one.score for one in chosen.ranked[:3]), reverse=True)
    assert chosen.ranked[3].name == "stranger"
    assert math.isnan(chosen.ranked[3].score)


def test_the_sentence_says_whether_the_lead_is_significant():
    def why(spread: float) -> str:
        *tasks, target = noisy(spread)
        return choose(target, [ExpertFacts(task.name, task) for task in tasks], SELECTORS["asym"]).why

    assert why(0.01).endswith("; the lead is significant (95 %).")
    assert re.search(r"; the lead is not significant \(95 %\): (t\d|any of \d others) may be first, too\.$", why(2.0))


def test_ties_one_expert_and_none():
    _, tasks, experts = problem()
    task, first = tasks["task9"], experts["task0"]
    twin = ExpertFacts("a twin", first.task)
    chosen = choose(task, [first, twin], Distance())
    assert [one.name for one in chosen.ranked] == ["a twin", "task0"]
    assert chosen.why.endswith(", tied with 1 other.")
    assert choose(task, [first], Distance()).why.endswith("; there is no other.")
    assert choose(task, [first, ExpertFacts("x")], Distance()).why.endswith("too little is known of the others.")
    assert choose(task, [first], Model2Vec()).ranked[0].best is None
    with pytest.raises(ValueError, match="choose: expected an expert to choose from for 'task9', got none"):
        choose(task, [], Distance())
