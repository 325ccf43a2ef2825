"""Tasks, experts and errors where the right selector is known."""

import torch
from torch import Tensor

from task2vec_ext.embedding import Embedding, HeadInfo, ProbeInfo
from task2vec_ext.fisher import HeadSettings
from task2vec_ext.jackknife import Groups, group_sizes, num_groups
from task2vec_ext.probe.layers import Layer
from task2vec_ext.selection import Distance, ErrorMatrix, ExpertFacts, TaskFacts
from task2vec_ext.settings import EmbedSettings

LAYERS = 4
K = 40


def embedding(fisher: Tensor, name: str, fingerprint: str = "0") -> Embedding:
    width = len(fisher) // LAYERS
    return Embedding(
        fisher=fisher,
        prior=torch.full_like(fisher, 0.01),
        layers=tuple(Layer(f"conv{i}", "conv", i * width, (i + 1) * width, 9) for i in range(LAYERS)),
        probe=ProbeInfo("tiny", "none", fingerprint),
        head=HeadInfo(2, 0.5, 0.5),
        settings=EmbedSettings(),
        prior_scale=2e-7,
        num_samples=10,
        name=name,
    )


def problem(
    E: int = 6, T: int = 16, *, bias: float = 0.0, alpha: float = 0.15, seed: int = 0
) -> tuple[ErrorMatrix, dict[str, TaskFacts], dict[str, ExpertFacts]]:
    """Errors that rise with d_asym of hidden models ``m = F + b``, b a multiple of the mean Fisher in each layer.

    The first E tasks have experts. With `bias` 0 the models are the tasks' embeddings, and d_asym is always right.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    width = 10
    fisher = (0.5 * normal(T, LAYERS * width) + normal(T, LAYERS).repeat_interleave(width, 1)).exp()
    hidden = bias * normal(E, LAYERS).abs().repeat_interleave(width, 1) * fisher.mean(0)
    names = tuple(f"task{t}" for t in range(T))
    tasks = {
        name: TaskFacts(name, embedding(row, name), num_images=100 + t)
        for t, (name, row) in enumerate(zip(names, fisher, strict=True))
    }
    experts = {name: ExpertFacts(name, tasks[name]) for name in names[:E]}
    models = [
        ExpertFacts(name, TaskFacts(name, embedding(row + b, name)))
        for name, row, b in zip(names[:E], fisher[:E], hidden, strict=True)
    ]
    distances = torch.stack([-Distance(alpha=alpha).rank(task, models) for task in tasks.values()], 1)
    errors = 0.1 + 0.5 * (distances - distances.min()) / (distances.max() - distances.min())
    return ErrorMatrix(errors, names[:E], names), tasks, experts


def groups_of(rows):
    """Images dealt to groups in turn."""
    count = num_groups(len(rows))
    means = torch.stack([rows[g::count].mean(0) for g in range(count)])
    return Groups(rows.mean(0), means.float(), group_sizes(len(rows), count))


def task_of(seed, n=96, spread=1.0, noise=1.0, twin=0):
    """An embedding of n images whose Fisher is exponential around a log-normal truth of its seed."""
    truth = torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(spread).exp()
    uniform = torch.rand(n, K, generator=torch.Generator().manual_seed(1000 * seed + twin), dtype=torch.float64)
    rows = truth * (1 - noise - noise * uniform.clamp(min=1e-12).log())
    groups = groups_of(rows)
    return Embedding(
        fisher=groups.mean,
        prior=torch.full((K,), 0.1, dtype=torch.float64) * torch.linspace(1, 2, K, dtype=torch.float64),
        layers=(Layer("conv1", "conv", 0, K, 27),),
        probe=ProbeInfo("tiny", "none", "00"),
        head=HeadInfo(2, 0.5, 0.5),
        settings=EmbedSettings(head=HeadSettings(cross_fit=None)),  # no heads vary
        prior_scale=2e-7,
        num_samples=n,
        name=f"task {seed}.{twin}",
        group_means=groups.means,
    ), truth


def blocks(sizes: list[int], seed: int = 0) -> tuple[Tensor, list[str], list[str]]:
    """Distances of shuffled tasks, 0.1 to 0.2 inside a family, 0.6 to 0.7 between; names say the family."""
    generator = torch.Generator().manual_seed(seed)
    family = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    family = family[torch.randperm(len(family), generator=generator)]
    T = len(family)
    noise = 0.1 * torch.rand(T, T, generator=generator, dtype=torch.float64)
    distances = torch.where(family[:, None] == family, 0.1, 0.6) + (noise + noise.T) / 2
    distances.fill_diagonal_(0)
    return distances, [f"f{f}-task{t}" for t, f in enumerate(family)], [f"family {f}" for f in family]
