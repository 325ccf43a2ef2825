"""The table on matrices that can be counted by hand, and its bootstrap."""

import dataclasses
import json
import math

import pytest
import torch
from synthetic import problem

from task2vec_ext.selection import IMAGENET, SELECTORS, Distance, ErrorMatrix, ExpertFacts, Model2Vec, TaskFacts
from task2vec_ext.selection.baselines import Chance, ImageNet, LargestTask
from task2vec_ext.selection.evaluate import MEASURES, evaluate
from task2vec_ext.selection.selector import Selector

NAN = math.nan


def by_hand() -> tuple[ErrorMatrix, dict[str, TaskFacts]]:
    """Three experts and the probe on four tasks; a is the largest."""
    errors = [
        [0.01, 0.20, 0.40, 0.00],  # a: its own task's error counts for nothing
        [0.30, 0.01, 0.20, 0.10],  # b
        [0.20, 0.10, 0.01, 0.05],  # c
        [0.40, 0.30, 0.10, NAN],  # imagenet
    ]
    tasks = {name: TaskFacts(name, num_images=n) for name, n in (("a", 900), ("b", 50), ("c", 60), ("d", 9))}
    return ErrorMatrix(
        torch.tensor(errors, dtype=torch.float64), ("a", "b", "c", IMAGENET), ("a", "b", "c", "d")
    ), tasks


@dataclasses.dataclass(frozen=True)
class Fixed(Selector):
    """Scores by expert, and only of tasks of these names."""

    name: str = "fixed"
    values: tuple[tuple[str, float], ...] = ()

    def rank(self, task, experts):
        return torch.tensor([dict(self.values).get(expert.name, NAN) for expert in experts])

    def passes(self, num_experts):
        return 7 * num_experts


def test_the_table_is_what_is_counted_by_hand():
    errors, tasks = by_hand()
    table = evaluate(errors, [Chance(), ImageNet(), LargestTask(), SELECTORS["domain"]], tasks)
    assert table.tasks == ("a", "b", "c", "d")
    assert table.experts == ("a", "b", "c")
    assert table.optimum.tolist() == [0.2, 0.1, 0.2, 0.0]
    # Task d's least error is 0: it has no relative increase.
    means = {row.selector: row.means for row in table.rows}
    assert means["chance"]["increase"].value == pytest.approx((0.05 / 0.2 + 0.05 / 0.1 + 0.1 / 0.2) / 3)
    assert means["chance"]["points"].value == pytest.approx((0.05 + 0.05 + 0.1 + 0.05) / 4)
    assert means["chance"]["top1"].value == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 1 / 3) / 4)
    assert math.isnan(means["chance"]["spearman"].value)
    assert means["imagenet"]["increase"].value == pytest.approx((1 + 2 - 0.5) / 3)  # below 0: better than any expert
    assert math.isnan(means["imagenet"]["top1"].value)
    # a is the largest; on its own task c is, of 60 images.
    assert means["largest_task"]["increase"].value == pytest.approx((0 + 1 + 1) / 3)
    assert means["largest_task"]["top1"].value == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert means["largest_task"]["top3"].value == 1
    assert table.unable == {"domain": "domain: expected task 'a' with mean_features, got it without."}
    row = table.row("largest_task")
    assert row.scores.isnan().tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [True] * 4,
    ]
    assert [row.passes for row in table.rows] == [0, 0, 0]
    assert evaluate(errors, [Fixed(values=(("a", 1.0),))], tasks).row("fixed").passes == 21


def test_gaps_leave_out_experts_and_tasks():
    errors, tasks = by_hand()
    gaps = errors.errors.clone()
    gaps[2, 1] = NAN  # task b has one expert left, task c keeps two
    gaps[:3, 3] = NAN
    table = evaluate(ErrorMatrix(gaps, errors.experts, errors.tasks), [Chance(), LargestTask()], tasks)
    assert table.tasks == ("a", "c")
    assert table.left_out == {"b": "1 expert to choose from", "d": "0 experts to choose from"}
    with pytest.raises(ValueError, match="a task with two experts or more to choose from"):
        evaluate(errors.select(experts=["a", IMAGENET]), [Chance()], tasks)


def test_an_expert_without_a_score_is_never_chosen():
    errors, tasks = by_hand()
    table = evaluate(errors, [Fixed(values=(("b", 0.0),))], tasks, folds=0)
    # On its own task b cannot be chosen, and nothing else has a score.
    assert table.row("fixed").outcomes[0].isnan().tolist() == [False, True, False, True]
    assert table.row("fixed").means["points"].value == pytest.approx((0.1 + 0.0 + 0.1) / 3)


def test_learned_selectors_never_see_the_task_they_choose_for():
    errors, tasks, experts = problem(E=4, T=8)
    seen: list[tuple[str, ...]] = []

    @dataclasses.dataclass(frozen=True)
    class Watched(Selector):
        name: str = "watched"

        def rank(self, task, experts):
            return torch.zeros(len(experts))

        def fit(self, errors, tasks, experts):
            seen.append(errors.tasks)
            own = [
                errors.errors[errors.experts.index(name), t] for t, name in enumerate(errors.tasks) if name in experts
            ]
            assert all(value.isnan() for value in own)
            return self

    evaluate(errors, [Watched()], tasks, experts)
    assert seen == [tuple(name for name in errors.tasks if name != held_out) for held_out in errors.tasks]
    seen.clear()
    evaluate(errors, [Watched()], tasks, experts, folds=3)
    assert [len(names) for names in seen] == [5, 5, 6]
    seen.clear()
    fitted = Model2Vec().fit(errors, tasks, experts)
    table = evaluate(errors, [Watched(), fitted], tasks, experts, folds=0)
    assert seen == []
    expected = fitted.rank(tasks["task7"], list(experts.values()))
    torch.testing.assert_close(table.row("model2vec").scores[:, 7], expected)


def test_alpha_of_every_part_is_that_of_a_fit_to_the_others():
    errors, tasks, experts = problem(E=5, T=9, alpha=0.6, bias=1.0)
    selector, parts = Distance("asym_fitted", alpha=None), [range(0, 9, 2), range(1, 9, 2), range(3)]
    found = [one.alpha for one in selector.fit_parts(errors.without_own(), tasks, experts, parts)]
    for alpha, part in zip(found, parts, strict=True):
        others = errors.without_own().select(tasks=[name for t, name in enumerate(errors.tasks) if t not in part])
        assert selector.fit(others, tasks, experts).alpha == alpha
    assert len(set(found)) > 1
    every = Distance().rank_all(list(tasks.values()), list(experts.values()))
    one_by_one = torch.stack([Distance().rank(task, list(experts.values())) for task in tasks.values()], 1)
    torch.testing.assert_close(every, one_by_one, rtol=0, atol=1e-12)


def test_bootstrap_covers_the_truth_and_shares_its_draws():
    """100 matrices of 30 tasks: 95 % intervals of a mean that is known; percentiles of 30 are a little too narrow."""
    inside = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        best = torch.full((30,), 0.2, dtype=torch.float64)
        worse = 0.2 + 0.2 * torch.rand(30, generator=generator, dtype=torch.float64)  # increases of 50 % on average
        tasks = tuple(f"t{t}" for t in range(30))
        table = evaluate(
            ErrorMatrix(torch.stack([best, worse]), ("x", "y"), tasks),
            [Fixed(values=(("y", 1.0),)), Chance()],
            {},
            draws=500,
            seed=seed,
        )
        _, low, high = table.row("fixed").means["increase"]
        inside += low <= 0.5 <= high
        difference = table.difference("fixed", "chance")
        assert difference.value == pytest.approx(table.row("fixed").means["increase"].value / 2)
        assert difference.high - difference.low == pytest.approx((high - low) / 2)
    # Four standard errors (2.5 each) below the 93.5 that are to be expected.
    assert inside >= 84


def test_json_holds_no_nan_and_names_all():
    errors, tasks = by_hand()
    table = evaluate(errors, [Chance(), ImageNet(), SELECTORS["asym"]], tasks)
    content = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert content["selectors"]["chance"]["spearman"] == {"value": None, "low": None, "high": None}
    assert set(MEASURES) < set(content["selectors"]["imagenet"])
    assert "expected task 'a' with an embedding" in content["unable"]["asym"]
    assert content["optimum"] == pytest.approx(0.125)
    table = evaluate(errors.select(experts=["a", "b", "c"]), [Chance(), ImageNet()], tasks)
    assert table.unable == {"imagenet": "imagenet: expected a row imagenet in the errors, got none among 3 rows."}


def test_wrong_options_are_named():
    errors, tasks = by_hand()
    with pytest.raises(ValueError, match=r"draws >= 1, confidence in \(0, 1\)"):
        evaluate(errors, [Chance()], tasks, confidence=95)
    with pytest.raises(ValueError, match=r"different names, got \['chance'\]"):
        evaluate(errors, [Chance(), Chance()], tasks)
    with pytest.raises(ValueError, match="expected one of chance"):
        evaluate(errors, [Chance()], tasks).row("asym")
    with pytest.raises(ValueError, match="expected one of increase"):
        evaluate(errors, [Chance()], tasks).difference("chance", "chance", "accuracy")
    known = {name: ExpertFacts(name, TaskFacts(name, num_images=1)) for name in errors.experts}
    assert evaluate(errors, [LargestTask()], tasks, known).row("largest_task").means["top3"].value == 1
