// d_sym on the CPU. The fast pass: tiles of pairs that stay in the cache, float32 lanes, one division for two pairs
// (division is what d_sym costs). The exact pass: float64 throughout, for the pairs that the fast one leaves open.
#include "../pairwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

namespace task2vec {
namespace {

constexpr int kTile = 128, kSlice = 1024;    // rows and filters of a tile: half a megabyte for either side
constexpr int kNumerators = 4, kOthers = 2;  // pairs whose sums are in registers: 16 of AVX-512's 32
constexpr int kRun = 16;  // float32 additions in a row: longer, and equal ratios, which all round the same way, show
constexpr int kPad = 16;  // filters in the widest vector
constexpr int kExactTile = 16;  // rows of a tile of the exact pass, read as they lie

// ---- lanes: compiler vectors where there are any, so that one source serves every instruction set ------------

#ifdef __GNUC__
template <class S, int bytes>
struct Lanes {
  typedef S type __attribute__((vector_size(bytes)));
};
#define TASK2VEC_INLINE inline __attribute__((always_inline))
#else
template <class S, int bytes>
struct Lanes {
  using type = S;
};
#define TASK2VEC_INLINE inline
#endif

template <class V, class S>
TASK2VEC_INLINE void load(V& v, const S* from) {
  std::memcpy(&v, from, sizeof(V));
}

template <class S, int bytes>
TASK2VEC_INLINE S sum_of(const typename Lanes<S, bytes>::type& v) {
  if constexpr (sizeof(v) == sizeof(S)) {
    S sum;
    std::memcpy(&sum, &v, sizeof(S));
    return sum;
  } else {
    typename Lanes<S, bytes / 2>::type low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return sum_of<S, bytes / 2>(low + high);
  }
}

using RatioSums = double[2];  // Σ r, Σ r²

// r = x/(x + y) for 4 numerators x and 2 others y: one division, x/(s₀·s₁), serves two pairs.
template <int bytes>
TASK2VEC_INLINE void ratio_sums(const float* const* x,  // [kNumerators][filters]
                                const float* const* y,  // [kOthers][filters]
                                int filters,            // multiple of kPad
                                RatioSums* sums) {      // [kNumerators, kOthers], rows kTile apart; added to
  using V = typename Lanes<float, bytes>::type;
  constexpr int kLanes = sizeof(V) / sizeof(float);
  const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3], *y0 = y[0], *y1 = y[1];
  V total[kNumerators][kOthers][2] = {};
  for (int first = 0; first < filters; first += kRun * kLanes) {
    const int last = std::min(filters, first + kRun * kLanes);
    V run[kNumerators][kOthers][2] = {};
    for (int k = first; k < last; k += kLanes) {
      V other0, other1;
      load(other0, y0 + k);
      load(other1, y1 + k);
      const auto add = [&](int i, const float* from) {
        V numerator;
        load(numerator, from + k);
        const V s0 = numerator + other0, s1 = numerator + other1;
        const V shared = numerator / (s0 * s1);
        const V r0 = shared * s1, r1 = shared * s0;
        run[i][0][0] += r0;
        run[i][0][1] += r0 * r0;
        run[i][1][0] += r1;
        run[i][1][1] += r1 * r1;
      };
      add(0, x0);
      add(1, x1);
      add(2, x2);
      add(3, x3);
    }
#pragma GCC unroll 4  // here and below, or the sums of a run would not stay in registers
    for (int i = 0; i < kNumerators; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kOthers; ++j) {
        total[i][j][0] += run[i][j][0];
        total[i][j][1] += run[i][j][1];
      }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kNumerators; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kOthers; ++j) {
      sums[i * kTile + j][0] += sum_of<float, bytes>(total[i][j][0]);
      sums[i * kTile + j][1] += sum_of<float, bytes>(total[i][j][1]);
    }
}

struct PairSums {
  double rr, qq, rq;
};

// Σ r², Σ q², Σ r·q in float64. r = a/(a + b) at any ratio: scale_a and scale_b bring both rows to one scale.
template <int bytes>
TASK2VEC_INLINE PairSums pair_sums(const double* a, const double* b, int64_t filters, double scale_a, double scale_b) {
  using V = typename Lanes<double, bytes>::type;
  constexpr int kLanes = sizeof(V) / sizeof(double);
  const V zero = {}, one = zero + 1.0;
  V rr = {}, qq = {}, rq = {};
  const auto add = [&](const double* from_a, const double* from_b) {
    V x, y;
    load(x, from_a);
    load(y, from_b);
    x *= scale_a;
    y *= scale_b;
    const V total = x + y;
    const V inverse = one / (total == zero ? one : total);  // a filter that is dead in both counts for nothing
    x *= inverse;
    y *= inverse;
    rr += x * x;
    qq += y * y;
    rq += x * y;
  };
  int64_t k = 0;
  for (; k + kLanes <= filters; k += kLanes) add(a + k, b + k);
  if (k < filters) {
    double rest[2][kLanes] = {};
    std::copy(a + k, a + filters, rest[0]);
    std::copy(b + k, b + filters, rest[1]);
    add(rest[0], rest[1]);
  }
  return {sum_of<double, bytes>(rr), sum_of<double, bytes>(qq), sum_of<double, bytes>(rq)};
}

struct Code {
  void (*ratio_sums)(const float* const*, const float* const*, int, RatioSums*);
  PairSums (*pair_sums)(const double*, const double*, int64_t, double, double);
};

#define TASK2VEC_CODE(name, attribute, bytes)                                                                    \
  attribute void ratio_sums_##name(const float* const* x, const float* const* y, int filters, RatioSums* sums) { \
    ratio_sums<bytes>(x, y, filters, sums);                                                                      \
  }                                                                                                              \
  attribute PairSums pair_sums_##name(const double* a, const double* b, int64_t filters, double scale_a,         \
                                      double scale_b) {                                                          \
    return pair_sums<bytes>(a, b, filters, scale_a, scale_b);                                                    \
  }

TASK2VEC_CODE(baseline, , 16)
#if defined(__GNUC__) && defined(__x86_64__)
TASK2VEC_CODE(avx2, __attribute__((target("avx2,fma"))), 32)
TASK2VEC_CODE(avx512, __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), 64)
#endif

// One wheel for every machine: the widest code that this one runs.
const Code& code() {
  static const Code best = [] {
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
      return Code{ratio_sums_avx512, pair_sums_avx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Code{ratio_sums_avx2, pair_sums_avx2};
#endif
    return Code{ratio_sums_baseline, pair_sums_baseline};
  }();
  return best;
}

// ---- the fast pass ---------------------------------------------------------------------------------------

// Rows in float32, times a power of two, sorted by their mean and cut into slices: what a tile reads is one run of
// memory.
struct Rows {
  int64_t count, filters, slices;
  std::vector<float> numerators;  // [slices, count, kSlice]; 0 where a filter is dead and in the padding
  std::vector<float> others;      // the same; there 2**kDeadExponent, so that no sum is 0; empty: numerators
  std::vector<double> mean;       // [count]
  std::vector<char> sure;         // [count] no entry is too small beside the largest of all
  std::vector<uint64_t> dead;     // [count, words] a bit a filter; empty where none is dead
  std::vector<int64_t> order;     // rows by mean

  int64_t words() const { return (filters + 63) / 64; }
  int64_t start(int64_t slice, int64_t rank) const { return (slice * count + rank) * kSlice; }
  const float* numerator(int64_t slice, int64_t rank) const { return &numerators[start(slice, rank)]; }
  const float* other(int64_t slice, int64_t rank) const {
    return &(others.empty() ? numerators : others)[start(slice, rank)];
  }
  int padded(int64_t slice) const {
    const int64_t left = std::min<int64_t>(kSlice, filters - slice * kSlice);
    return static_cast<int>((left + kPad - 1) / kPad * kPad);
  }
};

Rows rows_of(const double* values, int64_t count, int64_t filters, double scale) {
  Rows rows{count, filters, (filters + kSlice - 1) / kSlice, {}, {}, {}, {}, {}, {}};
  rows.mean.resize(count), rows.sure.resize(count), rows.order.resize(count);
  const float least = std::ldexp(1.f, SymFast::kLeastExponent), dead = std::ldexp(1.f, SymFast::kDeadExponent);
  bool any_dead = false;
#pragma omp parallel for schedule(static) reduction(|| : any_dead)
  for (int64_t t = 0; t < count; ++t) {
    const double* from = values + t * filters;
    float total = 0;
    int unsure = 0, zeros = 0;
#pragma omp simd reduction(+ : total, unsure, zeros)
    for (int64_t k = 0; k < filters; ++k) {
      const float value = static_cast<float>(from[k] * scale);
      total += value;
      zeros += from[k] == 0;
      unsure += value < least;
    }
    rows.mean[t] = total;
    rows.sure[t] = unsure == zeros;
    any_dead = any_dead || zeros > 0;
  }
  std::iota(rows.order.begin(), rows.order.end(), 0);
  std::sort(rows.order.begin(), rows.order.end(),
            [&](int64_t s, int64_t t) { return std::pair(rows.mean[s], s) < std::pair(rows.mean[t], t); });

  rows.numerators.resize(rows.slices * count * kSlice);
  if (any_dead || filters % kPad) rows.others.resize(rows.numerators.size());
  if (any_dead) rows.dead.assign(count * rows.words(), 0);
#pragma omp parallel for schedule(static)
  for (int64_t rank = 0; rank < count; ++rank) {
    const int64_t t = rows.order[rank];
    const double* from = values + t * filters;
    for (int64_t slice = 0; slice < rows.slices; ++slice, from += kSlice) {
      const int64_t first = rows.start(slice, rank), live = std::min<int64_t>(kSlice, filters - slice * kSlice);
      for (int64_t k = 0; k < live; ++k) rows.numerators[first + k] = static_cast<float>(from[k] * scale);
      if (!rows.others.empty())
        for (int64_t k = 0; k < kSlice; ++k)
          rows.others[first + k] = rows.numerators[first + k] > 0 ? rows.numerators[first + k] : dead;
    }
    for (int64_t k = 0; any_dead && k < filters; ++k)
      rows.dead[t * rows.words() + k / 64] |= uint64_t{values[t * filters + k] == 0} << (k % 64);
  }
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
void tile_sums(const Rows& above, int64_t first, const Rows& below, int64_t other, bool upper, RatioSums* sums) {
  std::fill_n(&sums[0][0], 2 * kTile * kTile, 0.0);
  const int64_t end_above = std::min(above.count, first + kTile), end_below = std::min(below.count, other + kTile);
  for (int64_t slice = 0; slice < above.slices; ++slice)
    for (int64_t i = first; i < end_above; i += kNumerators)
      for (int64_t j = other; j < end_below; j += kOthers) {
        if (upper && j + kOthers - 1 <= i) continue;
        const float *x[kNumerators], *y[kOthers];  // past the end the last row again; nobody reads its sums
        for (int64_t l = 0; l < kNumerators; ++l) x[l] = above.numerator(slice, std::min(i + l, end_above - 1));
        for (int64_t l = 0; l < kOthers; ++l) y[l] = below.other(slice, std::min(j + l, end_below - 1));
        code().ratio_sums(x, y, above.padded(slice), sums + (i - first) * kTile + (j - other));
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
    auto* sums = reinterpret_cast<RatioSums*>(workspace.data());
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
          const RatioSums& sum = sums[(i - first) * kTile + (j - other)];
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
        const PairSums sums = code().pair_sums(a + i * filters, b + j * filters, filters, scale.a, scale.b);
        d = sym_distance(sums.rr, sums.qq, sums.rq);
        if (symmetric) out[j * count_b + i] = d;
      }
  }
}

}  // namespace task2vec
