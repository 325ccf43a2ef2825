// d_sym on a GPU, in the two passes of kernels.h. Fast: a block takes 32 × 32 pairs, and each of its four groups of
// threads a quarter of the filters; a thread has 4 × 4 pairs in registers, and one reciprocal serves two of them.
// Exact: a warp a pair, in float64.
#include "cuda/launch.h"
#include "pairwise.h"

namespace task2vec {
namespace {

constexpr int kPairTile = 32, kPairSide = 8,
              kPairEach = kPairTile / kPairSide;  // pairs, threads and pairs of a thread along one side
constexpr int kPairRun = 8;                       // float32 additions in a row (cpu/pairwise.cpp)
constexpr int kPairGroups = 4, kPairSlice = kPairGroups * kPairRun;  // filters in shared memory: a run of each group
constexpr int kPairThreads = kPairGroups * kPairSide * kPairSide;
constexpr int kPairWarps = 8;

using PairRow = float[kPairTile + 1];  // + 1: filters of one row in different banks

// What a thread brings of one side of a tile. Rows that do not exist are the last one: nothing is written for their
// pairs.
struct PairLoad {
  static constexpr int kEach = kPairTile * kPairSlice / kPairThreads, kStep = kPairThreads / kPairSlice;
  int row[kEach];

  __device__ __forceinline__ PairLoad(int64_t first, int64_t count) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t own = first + threadIdx.x / kPairSlice + j * kStep;
      row[j] = static_cast<int>(own < count ? own : count - 1);
    }
  }
  __device__ __forceinline__ void load(PairRow* to, const float* rows, int64_t filters, int64_t filter, float outside) {
    const int thread = static_cast<int>(threadIdx.x), k = thread % kPairSlice;
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      to[k][thread / kPairSlice + j * kStep] =
          filter + k < filters ? __ldg(rows + row[j] * filters + filter + k) : outside;
  }
};

__global__ void __launch_bounds__(kPairThreads, 2) sym_fast_kernel(SymRows a,
                                                                   SymRows b,
                                                                   int64_t filters,
                                                                   bool symmetric,
                                                                   const float* __restrict__ live,  // [A, B] or null
                                                                   double* __restrict__ out) {      // [A, B]
  __shared__ union {
    struct {
      PairRow x[kPairSlice], y[kPairSlice];
    } tile;
    double totals[kPairEach * kPairEach * 2][kPairSide * kPairSide];
  } shared;
  const int64_t tiles_b = (b.count + kPairTile - 1) / kPairTile;
  const int64_t first_a = blockIdx.x / tiles_b * kPairTile, first_b = blockIdx.x % tiles_b * kPairTile;
  if (symmetric && first_b < first_a) return;
  // Numerators are the smaller rows: Σ q² = Σ 1 − 2 Σ r + Σ r² loses digits only where r is near 1 everywhere.
  const bool swap = a.mean[first_a] > b.mean[first_b];
  const SymRows above = swap ? b : a, below = swap ? a : b;
  const int64_t first = swap ? first_b : first_a, other = swap ? first_a : first_b;
  const int thread = static_cast<int>(threadIdx.x), group = thread / (kPairSide * kPairSide),
            of_group = thread % (kPairSide * kPairSide), column = of_group % kPairSide, row = of_group / kPairSide;

  PairLoad of_x(first, above.count), of_y(other, below.count);
  double total[kPairEach * kPairEach * 2] = {};  // Σ r and Σ r² of each pair
  for (int64_t filter = 0; filter < filters; filter += kPairSlice) {
    of_x.load(shared.tile.x, above.numerators, filters, filter, 0.f);
    of_y.load(shared.tile.y, below.others, filters, filter, 1.f);
    __syncthreads();
    float sum[kPairEach * kPairEach * 2] = {};
#pragma unroll 2
    for (int k = group * kPairRun; k < (group + 1) * kPairRun; ++k) {
      float own[kPairEach], to[kPairEach];
#pragma unroll
      for (int l = 0; l < kPairEach; ++l)
        own[l] = shared.tile.x[k][row + l * kPairSide], to[l] = shared.tile.y[k][column + l * kPairSide];
#pragma unroll
      for (int i = 0; i < kPairEach; ++i)
#pragma unroll
        for (int j = 0; j < kPairEach; j += 2) {
          const float s0 = own[i] + to[j], s1 = own[i] + to[j + 1];
          const float common = own[i] * reciprocal(s0 * s1);  // a normal number: kernels.h bounds both sums
          const float r0 = common * s1, r1 = common * s0;
          float* const pair = sum + (i * kPairEach + j) * 2;
          pair[0] += r0;
          pair[1] += r0 * r0;
          pair[2] += r1;
          pair[3] += r1 * r1;
        }
    }
#pragma unroll
    for (int i = 0; i < kPairEach * kPairEach * 2; ++i) total[i] += sum[i];
    __syncthreads();
  }

  // The groups in order; then the first one writes.
  for (int g = 1; g < kPairGroups; ++g) {
    if (group == g)
#pragma unroll
      for (int i = 0; i < kPairEach * kPairEach * 2; ++i) shared.totals[i][of_group] = total[i];
    __syncthreads();
    if (group == 0)
#pragma unroll
      for (int i = 0; i < kPairEach * kPairEach * 2; ++i) total[i] += shared.totals[i][of_group];
    __syncthreads();
  }
  if (group != 0) return;
#pragma unroll
  for (int i = 0; i < kPairEach; ++i)
#pragma unroll
    for (int j = 0; j < kPairEach; ++j) {
      const int64_t s = first + row + i * kPairSide, t = other + column + j * kPairSide;
      if (s >= above.count || t >= below.count || (symmetric && t <= s)) continue;
      const int64_t at = swap ? t * b.count + s : s * b.count + t;
      const double* const sums = total + (i * kPairEach + j) * 2;
      const double d = sure_distance(sums[0], sums[1], live ? live[at] : static_cast<double>(filters));
      out[at] = d;
      if (symmetric) out[t * b.count + s] = d;
    }
}

__global__ void __launch_bounds__(kPairWarps * 32) sym_exact_kernel(const double* __restrict__ a,            // [A, K]
                                                                    const double* __restrict__ b,            // [B, K]
                                                                    const int64_t* __restrict__ exponent_a,  // [A]
                                                                    const int64_t* __restrict__ exponent_b,  // [B]
                                                                    int64_t count_a,
                                                                    int64_t count_b,
                                                                    int64_t filters,
                                                                    bool symmetric,
                                                                    double* __restrict__ out) {  // [A, B]
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kPairWarps + threadIdx.x / 32;
  const int64_t i = pair / count_b, j = pair % count_b;
  if (i >= count_a || (symmetric && j <= i) || out[pair] >= 0) return;  // whole warps leave together
  const PairScale scale = pair_scale(exponent_a[i], exponent_b[j]);
  double rr = 0, qq = 0, rq = 0;
  for (int64_t k = lane; k < filters; k += 32) {
    const double x = a[i * filters + k] * scale.a, y = b[j * filters + k] * scale.b;
    const double total = x + y;
    if (total == 0) continue;  // a filter that is dead in both counts for nothing
    const double r = x / total, q = y / total;
    rr += r * r;
    qq += q * q;
    rq += r * q;
  }
  __syncwarp();  // all lanes have read out[pair], which the first will write: shuffles order no memory
  for (int offset = 16; offset > 0; offset >>= 1) {
    rr += __shfl_xor_sync(0xffffffffu, rr, offset);
    qq += __shfl_xor_sync(0xffffffffu, qq, offset);
    rq += __shfl_xor_sync(0xffffffffu, rq, offset);
  }
  if (lane != 0) return;
  const double d = sym_distance(rr, qq, rq);
  out[pair] = d;
  if (symmetric) out[j * count_b + i] = d;
}

}  // namespace

void sym_distances_fast(const SymRows& a,
                        const SymRows& b,
                        int64_t filters,
                        bool symmetric,
                        const float* live,
                        double* out,
                        Place at) {
  const dim3 grid = grid_of(ceil_div(a.count, kPairTile) * ceil_div(b.count, kPairTile));
  DeviceGuard guard(at.device);
  TASK2VEC_LAUNCH(sym_fast_kernel, grid, dim3(kPairThreads), 0, stream_of(at), a, b, filters, symmetric, live, out);
  check(cudaGetLastError());
}

void sym_distances_exact(const double* a,
                         const double* b,
                         const int64_t* exponent_a,
                         const int64_t* exponent_b,
                         int64_t count_a,
                         int64_t count_b,
                         int64_t filters,
                         bool symmetric,
                         double* out,
                         Place at) {
  const dim3 grid = grid_of(ceil_div(count_a * count_b, kPairWarps));
  DeviceGuard guard(at.device);
  TASK2VEC_LAUNCH(sym_exact_kernel, grid, dim3(kPairWarps * 32), 0, stream_of(at), a, b, exponent_a, exponent_b,
                  count_a, count_b, filters, symmetric, out);
  check(cudaGetLastError());
}

}  // namespace task2vec
