// What d_sym costs: the sums over filters. Compiled once per instruction set, into the namespace TASK2VEC_ISA.
#include <algorithm>
#include <utility>

#include "cpu/instruction_sets.h"
#include "cpu/simd.h"

namespace task2vec {
namespace {

// float32 additions in a row: in longer runs equal ratios, which all round the same way, show.
constexpr int kRun = kLanes<float>;

// Sums of 2·(pairs of vectors) at once: lane l of the result is Σ of vector l. A tree, each step of which halves two
// vectors into one.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && !defined(TASK2VEC_PLAIN_VECTORS)
#define TASK2VEC_SHUFFLE
#endif
#endif
template <class V, int... lane>
inline V halved(V a, V b, std::integer_sequence<int, lane...>) {
#ifdef TASK2VEC_SHUFFLE
  return __builtin_shufflevector(a, b, (2 * lane)...) + __builtin_shufflevector(a, b, (2 * lane + 1)...);
#else
  constexpr int n = sizeof...(lane);
  return V{(2 * lane < n ? a[2 * lane % n] + a[2 * lane % n + 1] : b[2 * lane % n] + b[2 * lane % n + 1])...};
#endif
}

void ratio_sums_of(const float* const* x, const float* const* y, int filters, float* sums) {
  using V = Vector<float>;
  constexpr int kLane = kLanes<float>, kSums = kNumerators * kOthers * 2;
  const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3], *y0 = y[0], *y1 = y[1];
  V whole[kSums] = {}, total[kSums] = {};  // of runs of runs, of runs
  for (int first = 0, runs = 1; first < filters; first += kRun * kLane, ++runs) {
    const int last = std::min(filters, first + kRun * kLane);
    V run[kSums] = {};
    for (int k = first; k < last; k += kLane) {
      const V other0 = load(y0 + k), other1 = load(y1 + k);
      const auto add = [&](V* to, const float* from) {
        const V numerator = load(from + k), s0 = numerator + other0, s1 = numerator + other1;
        const V shared = numerator / (s0 * s1);  // one division for two pairs
        const V r0 = shared * s1, r1 = shared * s0;
        to[0] += r0;
        to[1] += r0 * r0;
        to[2] += r1;
        to[3] += r1 * r1;
      };
      add(run, x0);
      add(run + 4, x1);
      add(run + 8, x2);
      add(run + 12, x3);
    }
#pragma GCC unroll 16  // or the sums of a run would not stay in registers
    for (int i = 0; i < kSums; ++i) total[i] += run[i];
    if (runs % kRun != 0) continue;
    for (int i = 0; i < kSums; ++i) {
      whole[i] += total[i];
      total[i] = V{};
    }
  }
  for (int i = 0; i < kSums; ++i) total[i] += whole[i];
  int vectors = kSums;
#pragma GCC unroll 6
  for (int width = kLane; width > 1; width /= 2, vectors /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < vectors / 2; ++i)
      total[i] = halved(total[2 * i], total[2 * i + 1], std::make_integer_sequence<int, kLane>());
  for (int i = 0; i < vectors; ++i) store(sums + i * kLane, total[i]);
}
static_assert(kNumerators == 4 && kOthers == 2 && kPad % kLanes<float> == 0);
static_assert(kNumerators * kOthers * 2 % kLanes<float> == 0);

PairSums exact_sums_of(const double* a, const double* b, int64_t filters, double scale_a, double scale_b) {
  using V = Vector<double>;
  constexpr int kLane = kLanes<double>;
  const V one = V{} + 1.0;
  V rr = {}, qq = {}, rq = {};
  const auto add = [&](V x, V y) {
    x *= scale_a;
    y *= scale_b;
    const V total = x + y;
    const V inverse = one / or_one<double>(total);  // a filter that is dead in both counts for nothing
    x *= inverse;
    y *= inverse;
    rr += x * x;
    qq += y * y;
    rq += x * y;
  };
  int64_t k = 0;
  for (; k + kLane <= filters; k += kLane) add(load(a + k), load(b + k));
  if (k < filters) add(load_some(a + k, filters - k), load_some(b + k, filters - k));
  return {sum<double>(rr), sum<double>(qq), sum<double>(rq)};
}

}  // namespace

namespace TASK2VEC_ISA {
void ratio_sums(const float* const* x, const float* const* y, int filters, float* sums) {
  ratio_sums_of(x, y, filters, sums);
}
PairSums exact_sums(const double* a, const double* b, int64_t filters, double scale_a, double scale_b) {
  return exact_sums_of(a, b, filters, scale_a, scale_b);
}
}  // namespace TASK2VEC_ISA
}  // namespace task2vec
