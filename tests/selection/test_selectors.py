"""Every selector through the common interface, on problems where the right one is known."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from synthetic import embedding, problem

from task2vec_ext import Reference, cross_distances
from task2vec_ext.selection import IMAGENET, SELECTORS, Distance, ErrorMatrix, ExpertFacts, Model2Vec, TaskFacts
from task2vec_ext.selection.evaluate import evaluate
from task2vec_ext.selection.model2vec import _asym


def outputs(name: str) -> SimpleNamespace:
    """Features whose classes lie the farther apart, the larger the expert's number."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    apart = 0.1 if name == IMAGENET else 1.5 * int(name.removeprefix("task"))
    features = apart * torch.eye(3, 8)[labels] + torch.randn(60, 8, generator=generator)
    return SimpleNamespace(features=features, probabilities=features[:, :4].softmax(1), labels=labels)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_scores_every_expert_it_can(name):
    E = 12 if name == "library_correlation" else 4
    errors, tasks, experts = problem(E=E, T=2 * E)
    facts = {
        key: dataclasses.replace(task, mean_features=task.embedding.fisher[:5], outputs=outputs)
        for key, task in tasks.items()
    }
    candidates = [*(ExpertFacts(key, facts[key]) for key in experts), ExpertFacts(IMAGENET)]
    selector = SELECTORS[name].fit(errors.select(tasks=errors.tasks[1:]), facts, experts)
    scores = selector.rank(facts["task0"], candidates)
    assert (scores.shape, scores.dtype) == ((E + 1,), torch.float64)
    unknown = scores.isnan().tolist()
    if name == "imagenet":
        assert unknown == [True] * E + [False]
    else:
        assert unknown[:E] == [False] * E
    again = SELECTORS[name].fit(errors.select(tasks=errors.tasks[1:]), facts, experts).rank(facts["task0"], candidates)
    assert torch.equal(scores[~scores.isnan()], again[~again.isnan()])
    assert selector.passes(10) in (0, 1, 3, 10)


@pytest.mark.parametrize("name", ["leep", "nce", "logme", "h_score", "knn", "linear_probe"])
def test_transferability_prefers_the_expert_whose_features_separate(name):
    task = TaskFacts("new", outputs=outputs)
    scores = SELECTORS[name].rank(task, [ExpertFacts(f"task{number}") for number in (0, 4, 1)])
    assert scores.argmax() == 1
    assert scores.argmin() == 0


def test_distance_is_the_distance_s_negative_and_domain_sees_images_alone():
    _, tasks, experts = problem()
    task, candidates = tasks["task9"], list(experts.values())
    sources = [tasks[name].embedding for name in experts]
    expected = -cross_distances(sources, [task.embedding], "asym", alpha=0.3)[:, 0]
    assert torch.equal(Distance(alpha=0.3).rank(task, candidates), expected)
    means = [torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])]
    near = [ExpertFacts(str(i), TaskFacts(str(i), mean_features=mean)) for i, mean in enumerate(means)]
    assert SELECTORS["domain"].rank(TaskFacts("x", mean_features=torch.tensor([1.0, 3.0])), near).argmax() == 0
    sizes = SELECTORS["largest_task"].rank(task, [*candidates, ExpertFacts(IMAGENET)])
    assert sizes[:-1].argmax() == len(candidates) - 1
    assert math.isnan(sizes[-1])


def test_library_correlation_is_relative_to_the_experts_tasks_or_to_a_reference():
    _, tasks, experts = problem(E=12, T=30)
    task, candidates = tasks["task20"], list(experts.values())
    sources = [tasks[name].embedding for name in experts]
    others = Reference.of([tasks[f"task{t}"].embedding for t in range(12, 25)])
    for given, reference in ((None, Reference.of(sources)), (others, others)):
        selector = dataclasses.replace(SELECTORS["library_correlation"], reference=given)
        expected = -cross_distances(sources, [task.embedding], "library_correlation", reference=reference)[:, 0]
        assert torch.equal(selector.rank(task, candidates), expected)
    with pytest.raises(ValueError, match=r"library_correlation: expected 10 experts or more .*, got 9"):
        SELECTORS["library_correlation"].rank(task, candidates[:9])
    few = dataclasses.replace(SELECTORS["library_correlation"], reference=others)
    assert few.rank(task, candidates[:2]).isfinite().all()


@pytest.mark.parametrize("alpha", [0.0, 0.15, 0.8])
def test_alpha_is_found_from_other_tasks_errors(alpha):
    errors, tasks, experts = problem(E=8, T=24, alpha=alpha)
    fitted = Distance(alpha=None).fit(errors, tasks, experts)
    assert fitted.alpha == pytest.approx(alpha, abs=0.15)  # between neighbouring values no choice may change
    table = evaluate(errors, [Distance("fixed", alpha=alpha), Distance("fitted", alpha=None)], tasks, experts)
    assert table.row("fixed").means["increase"].value == 0
    assert table.row("fitted").means["increase"].value < 0.02


@pytest.mark.parametrize("form", ["layers", "filters"])
def test_model2vec_finds_hidden_models_that_d_asym_cannot(form):
    errors, tasks, _ = problem(E=6, T=24, bias=1.0)
    table = evaluate(errors, [Distance(), Model2Vec(form=form)], tasks, folds=6)
    # Where the errors follow F + b, choices by F alone are far from the best.
    assert table.row("asym").means["increase"].value > 0.1
    assert table.row("model2vec").means["increase"].value < 0.5 * table.row("asym").means["increase"].value
    assert table.row("model2vec").means["spearman"].value > table.row("asym").means["spearman"].value + 0.1
    assert table.difference("model2vec", "asym").high < 0


def test_model2vec_s_distance_is_d_asym_and_its_gradient_is_right():
    _, tasks, _ = problem(E=3, T=5)
    fisher = torch.stack([task.embedding.fisher for task in tasks.values()])
    models, prior = fisher[:3].clone(), tasks["task0"].embedding.prior
    fisher[:, 4], models[:, 4:6], fisher[1:3, 7] = 0, 0, 0  # dead in both, in the models, in some tasks
    targets = [embedding(row, str(t)) for t, row in enumerate(fisher)]
    expected = cross_distances([embedding(row, str(e)) for e, row in enumerate(models)], targets, "asym", alpha=0.3)
    torch.testing.assert_close(_asym(models, fisher, prior, 0.3), expected, rtol=0, atol=1e-12)
    at = (models + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: _asym(m, fisher, prior, 0.3), at)


def test_model2vec_of_low_rank_learns_what_it_can():
    errors, tasks, experts = problem(E=6, T=24, bias=1.0)
    fitted = Model2Vec(form=1, l2=0.01).fit(errors, tasks, experts)
    mean = torch.stack([task.embedding.fisher for task in tasks.values()]).mean(0)
    biases = torch.stack([fitted.models[name] - tasks[name].embedding.fisher for name in experts]) / mean
    values = torch.linalg.svdvals(biases[:, (biases > -0.05).all(0)])  # elsewhere the floor may have cut in
    assert values[0] > 0.1
    assert values[1] < 1e-6 * values[0]


def test_model2vec_is_d_asym_before_it_learns_and_under_an_infinite_penalty():
    errors, tasks, experts = problem(bias=1.0)
    task, candidates = tasks["task9"], list(experts.values())
    expected = Distance().rank(task, candidates)
    assert torch.equal(Model2Vec().rank(task, candidates), expected)
    held = Model2Vec(l2=1e9).fit(errors, tasks, experts).rank(task, candidates)
    torch.testing.assert_close(held, expected, rtol=0, atol=1e-6)


def test_model2vec_learns_an_expert_whose_task_nobody_embedded():
    errors, tasks, experts = problem(E=6, T=24, bias=1.0)
    experts["task0"] = ExpertFacts("task0")
    known = Model2Vec().fit(errors.select(tasks=errors.tasks[:20]), tasks, experts)
    column = known.rank(tasks["task22"], list(experts.values()))
    assert not column.isnan().any()
    assert math.isnan(Distance().rank(tasks["task22"], list(experts.values()))[0])


def test_model2vec_bears_gaps_and_learns_nothing_from_one_expert():
    errors, tasks, experts = problem(bias=1.0)
    gaps = errors.errors.clone()
    gaps[0, 1:5], gaps[1:, 6], gaps[2] = math.nan, math.nan, math.nan
    fitted = Model2Vec().fit(ErrorMatrix(gaps, errors.experts, errors.tasks), tasks, experts)
    scores = fitted.rank(tasks["task9"], list(experts.values()))
    assert scores.isnan().tolist() == [False, False, True, False, False, False]  # the third was never tried
    alone = errors.select(experts=["task0"])
    assert Model2Vec().fit(alone, tasks, experts).models == {}


def test_what_is_not_known_is_named():
    _, tasks, experts = problem()
    candidates = list(experts.values())
    for name, what in (
        ("asym", "expected task 'new' with an embedding"),
        ("model2vec", "expected task 'new' with an embedding"),
        ("domain", "expected task 'new' with mean_features"),
        ("leep", "expected task 'new' with the experts"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {what}"):
            SELECTORS[name].rank(TaskFacts("new"), candidates)
    with pytest.raises(ValueError, match="an expert with an embedding of its task to choose"):
        SELECTORS["asym"].rank(tasks["task0"], [])
    other = TaskFacts("new", embedding(tasks["task0"].embedding.fisher, "new", fingerprint="another probe"))
    with pytest.raises(ValueError, match="probe: tiny"):
        SELECTORS["asym"].rank(other, candidates)
