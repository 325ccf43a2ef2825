"""Made-up embeddings in families, for plots and the atlas."""

import torch

from task2vec_ext.embedding import Embedding, HeadInfo, ProbeInfo
from task2vec_ext.jackknife import group_sizes, num_groups
from task2vec_ext.probe.layers import Layer
from task2vec_ext.settings import EmbedSettings

K = 24
LAYERS = (Layer("conv1", "conv", 0, 8, 27), Layer("layer1.0.conv1", "conv", 8, K, 72))


def embedding(
    seed: int,
    family: int = 0,
    name: str | None = None,
    domain: str | None = "",
    taxonomy: dict[str, str] | None = None,
    groups: bool = True,
    classes: tuple[str, ...] = ("yes", "no"),
    images: int = 48,
) -> Embedding:
    """A task near those of its family; domain None: nothing is known of it."""
    random = torch.Generator().manual_seed(1000 + seed)
    centre = torch.randn(K, generator=torch.Generator().manual_seed(family), dtype=torch.float64)
    own = (1.5 * centre + 0.2 * torch.randn(K, generator=random, dtype=torch.float64)).exp()
    G = num_groups(images)
    means = (own * (1 + 0.2 * torch.randn(G, K, generator=random, dtype=torch.float64)).clamp(min=0.1)).float()
    sizes = group_sizes(images, G)
    metadata = {"domain": f"family {family}" if domain == "" else domain, "taxonomy": taxonomy or {}}
    return Embedding(
        fisher=sizes @ means.double() / sizes.sum(),
        prior=torch.full((K,), 0.1, dtype=torch.float64),
        layers=LAYERS,
        probe=ProbeInfo("small", "random", "00"),
        head=HeadInfo(len(classes), 0.9, 0.05 * (1 + seed)),
        settings=EmbedSettings(),
        metadata={} if domain is None else metadata,
        num_samples=images,
        name=f"f{family}-task{seed}" if name is None else name,
        classes=classes,
        group_means=means if groups else None,
    )


def families(*sizes: int, **how) -> list[Embedding]:
    """So many tasks of each family."""
    pairs = [(family, t) for family, size in enumerate(sizes) for t in range(size)]
    return [embedding(seed, family, **how) for seed, (family, _) in enumerate(pairs)]
