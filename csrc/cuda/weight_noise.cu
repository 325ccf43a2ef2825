// weight_noise on a GPU: a block a filter.
#include "cuda/launch.h"
#include "philox.h"

namespace task2vec {
namespace {

// Filters have hundreds of weights.
constexpr int kWeightThreads = 128;

template <class F>
__device__ __forceinline__ void for_each_weight(int64_t first, int64_t last, const NoiseKey& key, F&& f) {
  for (int64_t j = int64_t{threadIdx.x} * 4; first + j < last; j += int64_t{kWeightThreads} * 4) {
    float e[4];
    normals(key, static_cast<uint32_t>(j / 4), blockIdx.x, e[0], e[1], e[2], e[3]);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (first + j + k < last) f(first + j + k, e[k]);
  }
}

__global__ void __launch_bounds__(kWeightThreads) weight_noise_kernel(const float* __restrict__ weight,
                                                                      const float* __restrict__ sigma,
                                                                      const int64_t* __restrict__ starts,
                                                                      NoiseKey key,
                                                                      float* __restrict__ out) {
  const float s = sigma[blockIdx.x];
  for_each_weight(starts[blockIdx.x], starts[blockIdx.x + 1], key,
                  [&](int64_t i, float noise) { out[i] = weight[i] + s * noise; });
}

__global__ void __launch_bounds__(kWeightThreads) weight_noise_backward_kernel(const float* __restrict__ grad,
                                                                               const int64_t* __restrict__ starts,
                                                                               NoiseKey key,
                                                                               float* __restrict__ sums) {
  __shared__ float of_warp[kWeightThreads / 32];
  float sum = 0;
  for_each_weight(starts[blockIdx.x], starts[blockIdx.x + 1], key,
                  [&](int64_t i, float noise) { sum += grad[i] * noise; });
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (const float part : of_warp) sum += part;
  sums[blockIdx.x] = sum;
}

}  // namespace

void weight_noise(const float* weight,
                  const float* sigma,
                  const int64_t* starts,
                  int64_t filters,
                  const NoiseKey& key,
                  float* out,
                  Place at) {
  if (filters == 0) return;
  DeviceGuard guard(at.device);
  TASK2VEC_LAUNCH(weight_noise_kernel, grid_of(filters), dim3(kWeightThreads), 0, stream_of(at), weight, sigma, starts,
                  key, out);
  check(cudaGetLastError());
}

void weight_noise_backward(const float* grad,
                           const int64_t* starts,
                           int64_t filters,
                           const NoiseKey& key,
                           float* sums,
                           Place at) {
  if (filters == 0) return;
  DeviceGuard guard(at.device);
  TASK2VEC_LAUNCH(weight_noise_backward_kernel, grid_of(filters), dim3(kWeightThreads), 0, stream_of(at), grad, starts,
                  key, sums);
  check(cudaGetLastError());
}

}  // namespace task2vec
