// d_sym on the CPU. The fast pass: tiles of pairs that stay in the cache, float32 lanes, one division for two pairs
// (division is what d_sym costs). The exact pass: float64 throughout, for the pairs that the fast one leaves open.
#include "pairwise.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/instruction_sets.h"

namespace task2vec {
namespace {

// Rows and filters of a tile: half a megabyte for either side. Slices do not start a power of two apart, or the rows of
// a tile would share a few sets of the cache.
constexpr int kTile = 96, kSlice = 1424, kPitch = kSlice + kPad;
constexpr int kExactTile = 16;  // rows of a tile of the exact pass, read as they lie

using SumsOfPair = double[2];  // Σ r, Σ r²

// ---- the fast pass ---------------------------------------------------------------------------------------

// Rows in float32, times a power of two, cut into slices.
struct Rows {
  int64_t count, filters, slices;
  AlignedVector<float> numerators;  // [slices, count, kSlice]; 0 where a filter is dead and in the padding
  AlignedVector<float> others;      // the same; there 2**kDeadExponent, so that no sum is 0; empty: numerators
  std::vector<double> mean;         // [count]
  std::vector<char> sure;           // [count] no entry is too small beside the largest of all
  std::vector<uint64_t> dead;       // [count, words] a bit a filter; empty where none is dead
  std::vector<int64_t> order;       // rows by mean

  int64_t words() const { return (filters + 63) / 64; }
  int64_t start(int64_t slice, int64_t row) const { return (slice * count + row) * kPitch; }
  const float* numerator(int64_t slice, int64_t rank) const { return &numerators[start(slice, order[rank])]; }
  const float* other(int64_t slice, int64_t rank) const {
    return &(others.empty() ? numerators : others)[start(slice, order[rank])];
  }
  int live(int64_t slice) const { return static_cast<int>(std::min<int64_t>(kSlice, filters - slice * kSlice)); }
  int padded(int64_t slice) const { return (live(slice) + kPad - 1) / kPad * kPad; }
};

Rows rows_of(const double* values, int64_t count, int64_t filters, double scale) {
  Rows rows{count, filters, (filters + kSlice - 1) / kSlice, {}, {}, {}, {}, {}, {}};
  rows.numerators.resize(rows.slices * count * kPitch);
  rows.mean.resize(count), rows.sure.resize(count), rows.order.resize(count);
  const float least = std::ldexp(1.f, SymFast::kLeastExponent), dead = std::ldexp(1.f, SymFast::kDeadExponent);
  bool any_dead = false;
#pragma omp parallel for schedule(static) reduction(|| : any_dead)
  for (int64_t t = 0; t < count; ++t) {
    float total = 0;
    int unsure = 0, zeros = 0;
    for (int64_t slice = 0; slice < rows.slices; ++slice) {
      const double* from = values + t * filters + slice * kSlice;
      float* to = &rows.numerators[rows.start(slice, t)];
#pragma omp simd reduction(+ : total, unsure, zeros)
      for (int k = 0; k < rows.live(slice); ++k) {
        const float value = static_cast<float>(from[k] * scale);
        to[k] = value;
        total += value;
        zeros += from[k] == 0;
        unsure += value < least;
      }
    }
    rows.mean[t] = total;
    rows.sure[t] = unsure == zeros;
    any_dead = any_dead || zeros > 0;
  }
  if (any_dead || filters % kPad) {
    rows.others.resize(rows.numerators.size());
    if (any_dead) rows.dead.assign(count * rows.words(), 0);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t slice = 0; slice < rows.slices; ++slice) {
        const int64_t first = rows.start(slice, t);
        for (int64_t k = first; k < first + kPitch; ++k)
          rows.others[k] = rows.numerators[k] > 0 ? rows.numerators[k] : dead;
      }
      for (int64_t k = 0; any_dead && k < filters; ++k)
        rows.dead[t * rows.words() + k / 64] |= uint64_t{values[t * filters + k] == 0} << (k % 64);
    }
  }
  std::iota(rows.order.begin(), rows.order.end(), 0);
  std::sort(rows.order.begin(), rows.order.end(),
            [&](int64_t s, int64_t t) { return std::pair(rows.mean[s], s) < std::pair(rows.mean[t], t); });
  return rows;
}

double live_in_either(const Rows& a, int64_t s, const Rows& b, int64_t t) {
  int64_t dead = 0;
  if (!a.dead.empty() && !b.dead.empty())
    for (int64_t w = 0; w < a.words(); ++w)
      for (uint64_t both = a.dead[s * a.words() + w] & b.dead[t * b.words() + w]; both; both &= both - 1) ++dead;
  return static_cast<double>(a.filters - dead);
}

// Σ r, Σ r² of a tile of pairs; ranks count rows by their mean.
void tile_sums(const Rows& above, int64_t first, const Rows& below, int64_t other, bool upper, SumsOfPair* sums) {
  std::fill_n(&sums[0][0], 2 * kTile * kTile, 0.0);
  const RatioSums ratio_sums = instruction_set().ratio_sums;
  const int64_t end_above = std::min(above.count, first + kTile), end_below = std::min(below.count, other + kTile);
  for (int64_t slice = 0; slice < above.slices; ++slice)
    for (int64_t i = first; i < end_above; i += kNumerators) {
      const float* x[kNumerators];  // past the end the last row again; nobody reads its sums
      for (int64_t l = 0; l < kNumerators; ++l) x[l] = above.numerator(slice, std::min(i + l, end_above - 1));
      for (int64_t j = other; j < end_below; j += kOthers) {
        if (upper && j + kOthers - 1 <= i) continue;
        const float* y[kOthers];
        for (int64_t l = 0; l < kOthers; ++l) y[l] = below.other(slice, std::min(j + l, end_below - 1));
        float parts[kNumerators][kOthers][2];
        ratio_sums(x, y, above.padded(slice), &parts[0][0][0]);
        for (int64_t k = 0; k < kNumerators; ++k)
          for (int64_t l = 0; l < kOthers; ++l)
            for (int64_t power = 0; power < 2; ++power)
              sums[(i - first + k) * kTile + (j - other + l)][power] += static_cast<double>(parts[k][l][power]);
      }
    }
}

}  // namespace

void sym_distances_fast(const double* a,
                        const double* b,
                        int64_t count_a,
                        int64_t count_b,
                        int64_t filters,
                        int shift,
                        bool symmetric,
                        double* out) {
  const double scale = std::ldexp(1.0, shift);
  const Rows rows_a = rows_of(a, count_a, filters, scale);
  const Rows rows_b_alone = symmetric ? Rows{} : rows_of(b, count_b, filters, scale);
  const Rows& rows_b = symmetric ? rows_a : rows_b_alone;
  const int64_t tiles_a = (count_a + kTile - 1) / kTile, tiles_b = (count_b + kTile - 1) / kTile;
#pragma omp parallel
  {
    std::vector<double> workspace(2 * kTile * kTile);
    auto* sums = reinterpret_cast<SumsOfPair*>(workspace.data());
#pragma omp for schedule(dynamic)
    for (int64_t tile = 0; tile < tiles_a * tiles_b; ++tile) {
      const int64_t first_a = tile / tiles_b * kTile, first_b = tile % tiles_b * kTile;
      if (symmetric && first_b < first_a) continue;
      // Numerators are the smaller rows: Σ q² = Σ 1 − 2 Σ r + Σ r² loses digits only where r is near 1 everywhere.
      const bool swap = rows_a.mean[rows_a.order[first_a]] > rows_b.mean[rows_b.order[first_b]];
      const Rows &above = swap ? rows_b : rows_a, &below = swap ? rows_a : rows_b;
      const int64_t first = swap ? first_b : first_a, other = swap ? first_a : first_b;
      tile_sums(above, first, below, other, symmetric, sums);
      for (int64_t i = first; i < std::min(above.count, first + kTile); ++i)
        for (int64_t j = other; j < std::min(below.count, other + kTile); ++j) {
          const int64_t s = above.order[i], t = below.order[j];
          if ((symmetric && j <= i) || !above.sure[s] || !below.sure[t]) continue;
          const SumsOfPair& sum = sums[(i - first) * kTile + (j - other)];
          const double d = sure_distance(sum[0], sum[1], live_in_either(above, s, below, t));
          out[swap ? t * count_b + s : s * count_b + t] = d;
          if (symmetric) out[t * count_b + s] = d;
        }
    }
  }
}

// ---- the exact pass --------------------------------------------------------------------------------------

void sym_distances_exact(const double* a,
                         const double* b,
                         const int64_t* exponent_a,
                         const int64_t* exponent_b,
                         int64_t count_a,
                         int64_t count_b,
                         int64_t filters,
                         bool symmetric,
                         double* out) {
  const int64_t tiles_a = (count_a + kExactTile - 1) / kExactTile, tiles_b = (count_b + kExactTile - 1) / kExactTile;
#pragma omp parallel for schedule(dynamic)
  for (int64_t tile = 0; tile < tiles_a * tiles_b; ++tile) {
    const int64_t first = tile / tiles_b * kExactTile, other = tile % tiles_b * kExactTile;
    for (int64_t i = first; i < std::min(count_a, first + kExactTile); ++i)
      for (int64_t j = std::max(other, symmetric ? i + 1 : 0); j < std::min(count_b, other + kExactTile); ++j) {
        double& d = out[i * count_b + j];
        if (d >= 0) continue;
        const PairScale scale = pair_scale(exponent_a[i], exponent_b[j]);
        const PairSums sums = instruction_set().exact_sums(a + i * filters, b + j * filters, filters, scale.a, scale.b);
        d = sym_distance(sums.rr, sums.qq, sums.rq);
        if (symmetric) out[j * count_b + i] = d;
      }
  }
}

}  // namespace task2vec
