"""MODEL2VEC: an embedding of every expert, learned from its errors, in the space of the tasks' embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from .._util.words import check_word
from ..distance.comparable import check_comparable
from ..embedding import Embedding
from ..experts import ErrorMatrix
from .distances import PAPER_ALPHA, Distance
from .selector import ExpertFacts, Selector, TaskFacts

if TYPE_CHECKING:
    from typing_extensions import Self

Form = Literal["layers", "filters"]

_SOFTNESS = 0.5
"""Temperature of the soft targets, in standard deviations of a task's errors: an expert one deviation better than
another gets e² ≈ 7 times its weight."""
_FLOOR = 1e-3
"""Least entry of m, relative to the mean Fisher of its filter: F + b may be negative, and m may not."""
_MOST_STEPS = 60
_TINY = 1e-300  # least denominator: a filter dead in both has r = 0


@dataclass(frozen=True, eq=False)
class Model2Vec(Selector):
    """The expert whose *model* embedding is nearest: score −d_asym(m_i, t), ``m_i = F_i + b_i``.

    F_i is the embedding of the task the expert was trained on, and b_i is learned: `fit` minimises the cross-entropy
    ``−Σ_i q_i log p_i`` over tasks t with known errors, p the softmax over experts of −κ·d_asym(m_i, t), q the softmax
    of −error/(0.5 standard deviations). An L2 penalty pulls b to 0, where this is d_asym. If an expert's task has no
    embedding, ``F_i = 0`` and b starts at the tasks' mean. Before `fit` it is d_asym.

    Three passes, as for a `Distance`: the experts are not run.

    Args:
        name: Name of the selector.
        form: Form of b, in units of the tasks' mean Fisher: ``"layers"`` (a number for each layer, few enough to be
            learned from tens of tasks), ``"filters"`` (all free, as in the paper), or a rank: ``b = U·V``.
        l2: Strength of the penalty ``l2/2·Σ_i mean_k b_i[k]²``. On simulated errors (12 experts, embeddings of 30 real
            tasks, noise as of 160 test images) 1 did as well as d_asym or better, with hidden b and without; 0.1 and
            less did worse.
        alpha: The α of d_asym.
        models: Learned m by expert, ``[K]`` float64.

    Source:
        Achille et al., 1902.03545; soft targets, penalty, scale and the forms of b are this project's.
    """

    name: str = "model2vec"
    why: ClassVar[str] = "is the nearest, as its errors on other tasks place it"
    passes_per_task: ClassVar[int | None] = 3
    form: Form | int = "layers"
    l2: float = 1.0
    alpha: float = PAPER_ALPHA
    models: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check the form."""
        if not isinstance(self.form, int):
            check_word("Model2Vec", "form", self.form, Form)
        elif self.form < 1:
            raise ValueError(f"Model2Vec: expected a rank >= 1 as form, got {self.form}.")

    def rank(self, task: TaskFacts, experts: Sequence[ExpertFacts]) -> Tensor:
        if not self.models:
            return Distance(self.name, alpha=self.alpha).rank(task, experts)
        own = self._embeddings([task])[0]
        known = [self.models.get(expert.name) for expert in experts]
        learned = torch.stack([model for model in known if model is not None] or [torch.ones_like(own.fisher)])
        distances = iter(_asym(learned, own.fisher[None], own.prior, self.alpha)[:, 0].tolist())
        values = [None if model is None else -next(distances) for model in known]
        return self._scores("errors on other tasks", task, values)

    def fit(self, errors: ErrorMatrix, tasks: Mapping[str, TaskFacts], experts: Mapping[str, ExpertFacts]) -> Self:
        measured = ~errors.errors.isnan()
        # A task with one measured error has nothing to teach, and an expert without any cannot be learned.
        columns = measured.sum(0) > 1
        rows = measured[:, columns].any(1)
        if not columns.any():
            return self
        known = errors.select(
            experts=[name for name, row in zip(errors.experts, rows.tolist(), strict=True) if row],
            tasks=[name for name, column in zip(errors.tasks, columns.tolist(), strict=True) if column],
        )
        sources = [experts[name].embedding for name in known.experts]
        targets = self._embeddings([tasks[name] for name in known.tasks])
        check_comparable([*targets, *(source for source in sources if source is not None)])
        learned = _learn(known.errors, targets, sources, self)
        return replace(self, models=dict(zip(known.experts, learned, strict=True)))


def _learn(errors: Tensor, targets: list[Embedding], sources: list[Embedding | None], how: Model2Vec) -> Tensor:
    """Return m of every expert, ``[E, K]``, from their errors ``[E, T]``."""
    fisher, prior = torch.stack([target.fisher for target in targets]), targets[0].prior
    unit = fisher.mean(0)
    start = torch.stack([unit if source is None else source.fisher for source in sources])
    parameters, bias = _bias(how.form, len(sources), targets[0])
    measured = ~errors.isnan()
    spread = torch.stack([column[known].std(correction=0) for column, known in zip(errors.T, measured.T, strict=True)])
    q = (-errors / (_SOFTNESS * spread.clamp(min=1e-6))).masked_fill(~measured, -torch.inf).softmax(0)

    def models(parameters: list[Tensor]) -> Tensor:
        return torch.maximum(start + bias(parameters) * unit, _FLOOR * unit)

    with torch.no_grad():
        initial = _asym(models(parameters), fisher, prior, how.alpha).masked_fill(~measured, torch.nan)
        spreads = (initial - initial.nanmean(0)).square().nanmean(0).sqrt()
    log_kappa = -spreads.mean().clamp(min=1e-6).log()  # at the start, one standard deviation of distance is one logit
    free = [*parameters, log_kappa]
    for parameter in free:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(free, max_iter=_MOST_STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        distances = _asym(models(free[:-1]), fisher, prior, how.alpha)
        logits = (-free[-1].exp() * distances).masked_fill(~measured, -torch.inf)
        log_p = logits.log_softmax(0).masked_fill(~measured, 0)
        loss = -(q * log_p).sum(0).mean() + how.l2 / 2 * bias(free[:-1]).square().mean(1).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    with torch.no_grad():
        return models(free[:-1])


def _bias(form: str | int, num_experts: int, like: Embedding) -> tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]:
    """Return parameters with which b is 0, and the function from parameters to b/unit, ``[E, K]``."""
    zeros = partial(torch.zeros, dtype=torch.float64)
    if isinstance(form, int):
        # One factor is zero, and b with it; were both zero, so would be their gradients.
        mixed = torch.randn(num_experts, form, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return [mixed, zeros(form, len(like))], lambda factors: factors[0] @ factors[1]
    if form == "filters":
        return [zeros(num_experts, len(like))], lambda entries: entries[0]
    sizes = torch.tensor([layer.stop - layer.start for layer in like.layers])
    layer_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return [zeros(num_experts, len(sizes))], lambda entries: entries[0][:, layer_of]


def _asym(models: Tensor, fisher: Tensor, prior: Tensor, alpha: float) -> Tensor:
    """d_asym of models ``[E, K]`` to tasks ``[T, K]``, ``[E, T]``, differentiable in the models."""
    return _sym(models, fisher) - alpha * _sym(models, prior[None])


def _sym(models: Tensor, tasks: Tensor) -> Tensor:
    """d_sym, ``[E, T]``, from Σr and Σr²; `distance` has a form that is exact at every ratio, but without gradient."""
    s1, s2, live = _Sums.apply(models, tasks)
    return 1 - (s1 - s2) / (s2 * (live - 2 * s1 + s2)).clamp(min=1e-30).sqrt()


class _Sums(torch.autograd.Function):
    """Σr and Σr² over the filters, r = m/(m + F), and the number of live filters, ``[E, T]`` each.

    One task at a time, with r recomputed for the gradient: six times as fast as autograd on ``[E, T, K]``, which does
    not fit the cache (25 experts, 40 tasks, 4,800 filters).
    """

    @staticmethod
    def forward(ctx: Any, models: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(models, tasks)
        columns = []
        for task in tasks:
            total = models + task
            r = models / total.clamp(min=_TINY)
            columns.append(torch.stack([r.sum(1), (r * r).sum(1), total.count_nonzero(1).to(r.dtype)]))
        s1, s2, live = torch.stack(columns, 2)
        ctx.mark_non_differentiable(live)
        return s1, s2, live

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        models, tasks = ctx.saved_tensors
        result = torch.zeros_like(models)
        for t, task in enumerate(tasks):
            total = (models + task).clamp_(min=_TINY)
            r = models / total
            # d(Σr) = (1 − r)/total, d(Σr²) = 2r·(1 − r)/total
            result += (grads[0][:, t, None] + 2 * grads[1][:, t, None] * r) * (1 - r) / total
        return result, None
