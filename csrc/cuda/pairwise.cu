// d_sym on a GPU, in the two passes of kernels.h. Fast: a block takes 64 × 64 pairs, a thread 4 × 4 of them in
// registers; one reciprocal serves two pairs. Exact: a warp a pair, in float64.
#include "cuda/launch.h"
#include "pairwise.h"

namespace task2vec {
namespace {

constexpr int kPairTile = 64, kPairSide = 16,
              kPairEach = kPairTile / kPairSide;  // pairs, threads and pairs of a thread along one side
constexpr int kPairSlice = 32, kPairRun = 8;  // filters in shared memory; float32 additions in a row (cpu/pairwise.cpp)
constexpr int kPairWarps = 8;

__global__ void __launch_bounds__(kPairSide* kPairSide)
    sym_fast_kernel(SymRows a,
                    SymRows b,
                    int64_t filters,
                    bool symmetric,
                    const float* __restrict__ live,  // [A, B] or null
                    double* __restrict__ out) {      // [A, B]
  __shared__ float x[kPairSlice][kPairTile + 1],
      y[kPairSlice][kPairTile + 1];  // + 1: filters of one row in different banks
  const int64_t tiles_b = (b.count + kPairTile - 1) / kPairTile;
  const int64_t first_a = blockIdx.x / tiles_b * kPairTile, first_b = blockIdx.x % tiles_b * kPairTile;
  if (symmetric && first_b < first_a) return;
  // Numerators are the smaller rows: Σ q² = Σ 1 − 2 Σ r + Σ r² loses digits only where r is near 1 everywhere.
  const bool swap = a.mean[first_a] > b.mean[first_b];
  const SymRows above = swap ? b : a, below = swap ? a : b;
  const int64_t first = swap ? first_b : first_a, other = swap ? first_a : first_b;
  const int thread = static_cast<int>(threadIdx.x), column = thread % kPairSide, row = thread / kPairSide;

  double r_total[kPairEach][kPairEach] = {}, rr_total[kPairEach][kPairEach] = {};
  for (int64_t filter = 0; filter < filters; filter += kPairSlice) {
    for (int e = thread; e < kPairTile * kPairSlice; e += kPairSide * kPairSide) {
      const int k = e % kPairSlice, i = e / kPairSlice;
      const bool inside = filter + k < filters;
      x[k][i] = inside && first + i < above.count ? above.numerators[(first + i) * filters + filter + k] : 0.f;
      y[k][i] = inside && other + i < below.count ? below.others[(other + i) * filters + filter + k] : 1.f;
    }
    __syncthreads();
    for (int first_k = 0; first_k < kPairSlice; first_k += kPairRun) {
      float r[kPairEach][kPairEach] = {}, rr[kPairEach][kPairEach] = {};
      for (int k = first_k; k < first_k + kPairRun; ++k) {
        float own[kPairEach], to[kPairEach];
#pragma unroll
        for (int l = 0; l < kPairEach; ++l) own[l] = x[k][row + l * kPairSide], to[l] = y[k][column + l * kPairSide];
#pragma unroll
        for (int i = 0; i < kPairEach; ++i)
#pragma unroll
          for (int j = 0; j < kPairEach; j += 2) {
            const float s0 = own[i] + to[j], s1 = own[i] + to[j + 1];
            const float shared = __fdividef(own[i], s0 * s1);
            const float r0 = shared * s1, r1 = shared * s0;
            r[i][j] += r0;
            rr[i][j] += r0 * r0;
            r[i][j + 1] += r1;
            rr[i][j + 1] += r1 * r1;
          }
      }
#pragma unroll
      for (int i = 0; i < kPairEach; ++i)
#pragma unroll
        for (int j = 0; j < kPairEach; ++j) r_total[i][j] += r[i][j], rr_total[i][j] += rr[i][j];
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < kPairEach; ++i)
#pragma unroll
    for (int j = 0; j < kPairEach; ++j) {
      const int64_t s = first + row + i * kPairSide, t = other + column + j * kPairSide;
      if (s >= above.count || t >= below.count || (symmetric && t <= s)) continue;
      const int64_t at = swap ? t * b.count + s : s * b.count + t;
      const double d = sure_distance(r_total[i][j], rr_total[i][j], live ? live[at] : static_cast<double>(filters));
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
  TASK2VEC_LAUNCH(sym_fast_kernel, grid, dim3(kPairSide * kPairSide), 0, stream_of(at), a, b, filters, symmetric, live,
                  out);
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
