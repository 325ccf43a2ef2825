"""Distances between tasks: smaller is closer.

With F the Fisher of an embedding, t₀ its prior, p = F + t₀ its precision, v = 1/p its variance, and for a
pair r = F_a/(F_a + F_b), q = F_b/(F_a + F_b), Δ = log p_a − log p_b (all per filter; d_cos = 1 − cosine):

| distance | formula | range | source |
|---|---|---|---|
| ``sym`` | d_cos(r, q) | [0, 1] | paper; released ``cosine`` |
| ``sym_scaled`` | sym of F scaled to unit mean | [0, 1] | this project |
| ``asym`` | sym(a, b) − α·sym(a, t₀), a the source | [−α, 1] | paper |
| ``asym_scaled`` | asym of F and t₀ scaled to unit mean | [−α, 1] | this project |
| ``cosine`` | d_cos(F_a, F_b) | [0, 1] | none: for reference |
| ``normalized_cosine`` | d_cos(v_a·t₀, v_b·t₀) | [0, 1] | released code |
| ``correlation`` | 1 − Pearson correlation of v_a, v_b | [0, 2] | released code |
| ``entropy`` | log 2 − mean of H(r), H binary entropy | [0, log 2] | released code |
| ``kl`` | Σ max(KL(a‖b), KL(b‖a)) = ½ Σ (exp D − 1 − D), D = abs(Δ) | [0, ∞) | released code |
| ``asymmetric_kl`` | Σ KL(a‖b) = ½ Σ (exp(−Δ) − 1 + Δ) | [0, ∞) | released code |
| ``jsd`` | mean ½(KL(a‖m) + KL(b‖m)) = mean ½ log cosh(Δ/2) | [0, ∞) | released code |
| ``library_correlation`` | 1 − Pearson correlation of x_a − m, x_b − m | [0, 2] | this project |

x = log(F/mean F + 10⁻³); m is its mean over the tasks of a library, a `Reference`. It stays that of the library when
a new task is compared with it.

KL(a‖b) is that of two zero-mean Gaussians with variances v_a and v_b; m is the one with ½(v_a + v_b).
"Released code" is ``task_similarity.py`` of awslabs/aws-cv-task2vec. Its ``cosine`` is
d_sym, which is called ``"sym"`` here. Its ``kl`` takes the larger direction for each filter, then sums. Two
differences from the released code are deliberate:

- Its r adds ε = 1e-8 to the denominator, which is not scale-free. Here ε → 0: a filter that is dead in both
  tasks (F_a = F_b = 0) counts for nothing, in no sum and no mean, and F may be in any unit.
- Its variances are 1/F, infinite where a filter is dead (F = 0). Here they are 1/(F + t₀), the posterior
  variance (as its variational embeddings have it), so ``kl``, ``asymmetric_kl``, ``jsd``, ``correlation`` and
  ``normalized_cosine`` need embeddings with a prior.

All are computed in float64, and the result is on the CPU. For many embeddings (2**28 pairs × filters and more),
``sym``, ``asym`` and their scaled versions compute d_sym in float32 where that is accurate to 1e-6, and in float64
elsewhere (distances under 1e-3, embeddings of very different scale). Beyond a float64 copy of the embeddings (and for
these four a float32 copy, or two where filters are dead) and the result, the workspace stays under 32 MB for any T
and K. ``sym``
and ``sym_scaled`` of plain tensors on a GPU are computed there. Same input, same bits, on any number of threads.
"""

from ..words import DistanceName, SymDistanceName
from .comparable import check_comparable
from .distance import cross_distances, distance_matrix
from .reference import Reference
from .uncertainty import neighbour_ranks, norm_with_error, relative_error, with_error

__all__ = [
    "DistanceName",
    "Reference",
    "SymDistanceName",
    "check_comparable",
    "cross_distances",
    "distance_matrix",
    "neighbour_ranks",
    "norm_with_error",
    "relative_error",
    "with_error",
]
