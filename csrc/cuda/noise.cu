// local_noise and weight_noise on a GPU. One read of what the noise is added to and one write; a thread draws four
// numbers at a time, for four neighbouring filters.
#include "cuda/launch.h"
#include "cuda/scalar.cuh"
#include "philox.h"

namespace task2vec {
namespace {

constexpr int kNoiseThreads = 256, kNoiseWarps = kNoiseThreads / 32;
constexpr int kQuadsOfThread = 4;  // of the forward pass

// Four neighbouring filters of one location, some of which may not exist.
template <class T>
struct Quads {
  T* data;
  int filters, positions;
  bool channels_last, aligned;  // all four are there, side by side, where one load reaches them

  __device__ __forceinline__ int64_t offset(int64_t n, int o, int q) const {
    return channels_last ? (n * positions + q) * filters + o : (n * filters + o) * positions + q;
  }
  __device__ __forceinline__ void read(int64_t n, int o, int q, float (&to)[4]) const {
    const int64_t first = offset(n, o, q);
    if (aligned) {
      const auto quad = *reinterpret_cast<const Vector<T, 4>*>(data + first);
#pragma unroll
      for (int k = 0; k < 4; ++k) to[k] = to_float(quad.value[k]);
      return;
    }
    const int step = channels_last ? 1 : positions;
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k] = o + k < filters ? to_float(data[first + int64_t{k} * step]) : 0.f;
  }
  __device__ __forceinline__ void write(int64_t n, int o, int q, const float (&from)[4]) const {
    const int64_t first = offset(n, o, q);
    if (aligned) {
      Vector<T, 4> quad;
#pragma unroll
      for (int k = 0; k < 4; ++k) quad.value[k] = from_float<T>(from[k]);
      *reinterpret_cast<Vector<T, 4>*>(data + first) = quad;
      return;
    }
    const int step = channels_last ? 1 : positions;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (o + k < filters) data[first + int64_t{k} * step] = from_float<T>(from[k]);
  }
};

template <class T>
Quads<T> quads_of(const void* data, const NoiseShape& shape) {
  const bool aligned =
      shape.channels_last && shape.filters % 4 == 0 && reinterpret_cast<uintptr_t>(data) % sizeof(Vector<T, 4>) == 0;
  return {static_cast<T*>(const_cast<void*>(data)), shape.filters, shape.positions, shape.channels_last, aligned};
}

__device__ __forceinline__ void draw(const NoiseShape& shape,
                                     const NoiseKey& key,
                                     int64_t n,
                                     int o,
                                     int q,
                                     float (&e)[4]) {
  const uint64_t block =
      static_cast<uint64_t>(n * shape.positions + q) * static_cast<uint64_t>((shape.filters + 3) / 4) + o / 4;
  normals(key, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), e[0], e[1], e[2], e[3]);
}

__device__ __forceinline__ void read_sigma(const float* sigma, int filters, int o, float (&to)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) to[k] = o + k < filters ? __ldg(sigma + o + k) : 0.f;
}

__device__ __forceinline__ void read_norm(const NoiseShape& shape,
                                          const Quads<float>& norm,
                                          int64_t n,
                                          int o,
                                          int q,
                                          float (&to)[4]) {
  if (shape.norm_of_filter) return norm.read(n, o, q, to);
  const float all = __ldg(norm.data + n * shape.positions + q);
#pragma unroll
  for (int k = 0; k < 4; ++k) to[k] = all;
}

template <class T>
__global__ void __launch_bounds__(kNoiseThreads) local_noise_kernel(Quads<T> from,
                                                                    Quads<float> norm,
                                                                    const float* __restrict__ sigma,
                                                                    NoiseShape shape,
                                                                    NoiseKey key,
                                                                    int blocks_of_sample,
                                                                    Quads<T> to) {
  const int64_t n = blockIdx.x / blocks_of_sample;
  const uint32_t columns = static_cast<uint32_t>(shape.filters + 3) / 4,
                 positions = static_cast<uint32_t>(shape.positions);
  uint32_t i = blockIdx.x % blocks_of_sample * (kNoiseThreads * kQuadsOfThread) + threadIdx.x;
#pragma unroll 1
  for (int turn = 0; turn < kQuadsOfThread && i < columns * positions; ++turn, i += kNoiseThreads) {
    // Neighbouring threads take what lies side by side.
    const int q = static_cast<int>(shape.channels_last ? i / columns : i % positions);
    const int o = static_cast<int>(shape.channels_last ? i % columns : i / positions) * 4;
    float e[4], s[4], r[4], x[4];
    from.read(n, o, q, x);
    read_norm(shape, norm, n, o, q, r);
    read_sigma(sigma, shape.filters, o, s);
    draw(shape, key, n, o, q, e);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] += s[k] * r[k] * e[k];
    to.write(n, o, q, x);
  }
}

// A block takes one tile of locations and kNoiseFilters filters. Channels-last, the lanes of a warp are filters, as
// many of them as there are (a power of two), and then locations; else they are locations.
template <class T>
__global__ void __launch_bounds__(kNoiseThreads, 2)
    local_noise_backward_kernel(Quads<T> grad,
                                Quads<float> norm,
                                const float* __restrict__ sigma,
                                NoiseShape shape,
                                NoiseKey key,
                                int lanes,  // that are filters: 1 if not channels-last
                                float* __restrict__ sums,
                                float* __restrict__ grad_norm) {
  const int tiles = (shape.positions + kNoiseTile - 1) / kNoiseTile,
            parts = (shape.filters + kNoiseFilters - 1) / kNoiseFilters;
  const int part = static_cast<int>(blockIdx.x % parts), tile = static_cast<int>(blockIdx.x / parts % tiles);
  const int64_t n = blockIdx.x / parts / tiles;
  const int first = tile * kNoiseTile,
            last = first + kNoiseTile < shape.positions ? first + kNoiseTile : shape.positions;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int filters = shape.filters - part * kNoiseFilters;
  const int columns = filters < kNoiseFilters ? (filters + 3) / 4 : kNoiseFilters / 4;
  const bool reduce = grad_norm && !shape.norm_of_filter;
  const Quads<float> own_norm = {grad_norm, shape.filters, shape.positions, shape.channels_last, norm.aligned};
  float* to_norm = reduce ? grad_norm + (part * shape.samples + n) * shape.positions : nullptr;

  // What one thread sums of four filters and, of all its filters, at one location.
  float total[4], at_location;
  const auto visit = [&](int column, int q) {
    const int o = part * kNoiseFilters + column * 4;
    float e[4], s[4], r[4], x[4];
    grad.read(n, o, q, x);
    read_norm(shape, norm, n, o, q, r);
    read_sigma(sigma, shape.filters, o, s);
    draw(shape, key, n, o, q, e);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      e[k] *= x[k];
      total[k] += r[k] * e[k];
      e[k] *= s[k];
      at_location += e[k];
    }
    if (grad_norm && shape.norm_of_filter) own_norm.write(n, o, q, e);
  };
  float* to_sums = sums + (n * tiles + tile) * shape.filters + part * kNoiseFilters;
  const auto write_sum = [&](int column, int k, float value) {
    if (part * kNoiseFilters + column * 4 + k < shape.filters) to_sums[column * 4 + k] = value;
  };

  if (shape.channels_last) {
    // lanes divides 32 and covers the columns; the rest of a warp is at other locations.
    __shared__ float rows[kNoiseThreads][4];
    const int column = lane % lanes, row = thread / lanes, rows_of_block = kNoiseThreads / lanes;
#pragma unroll
    for (int k = 0; k < 4; ++k) total[k] = 0;
    for (int start = first; start < last; start += rows_of_block) {  // all lanes come along: they exchange numbers
      const int q = start + row;
      at_location = 0;
      if (q < last && column < columns) visit(column, q);
      if (!reduce) continue;
      for (int d = lanes / 2; d; d /= 2) at_location += __shfl_xor_sync(~0u, at_location, d);
      if (q < last && column == 0) to_norm[q] = at_location;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) rows[thread][k] = total[k];
    __syncthreads();
    for (int i = thread; i < columns * 4; i += kNoiseThreads) {
      float sum = 0;
      for (int r = 0; r < rows_of_block; ++r) sum += rows[r * lanes + i / 4][i % 4];
      write_sum(i / 4, i % 4, sum);
    }
    return;
  }

  __shared__ float locations[kNoiseWarps][kNoiseTile];  // a thread's own places: no other adds to them
  for (int q = lane; q < kNoiseTile; q += 32) locations[warp][q] = 0;
  for (int column = warp; column < columns; column += kNoiseWarps) {
#pragma unroll
    for (int k = 0; k < 4; ++k) total[k] = 0;
    for (int q = first + lane; q < last; q += 32) {
      at_location = 0;
      visit(column, q);
      locations[warp][q - first] += at_location;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float sum = total[k];
      for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
      if (lane == 0) write_sum(column, k, sum);
    }
  }
  __syncthreads();
  if (!reduce || first + thread >= last) return;
  float sum = 0;
  for (int w = 0; w < kNoiseWarps; ++w) sum += locations[w][thread];
  to_norm[first + thread] = sum;
}
static_assert(kNoiseFilters == 4 * 32, "a warp's lanes are the filters of one part");

// A block a filter: filters have hundreds of weights.
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

void local_noise(const void* output,
                 Scalar scalar,
                 const float* norm,
                 const float* sigma,
                 const NoiseShape& shape,
                 const NoiseKey& key,
                 void* out,
                 Place at) {
  if (shape.samples == 0) return;
  DeviceGuard guard(at.device);
  const int64_t quads = ceil_div(shape.filters, 4) * shape.positions;
  const int blocks = static_cast<int>(ceil_div(quads, kNoiseThreads * kQuadsOfThread));
  with_scalar(scalar, [&](auto of_type) {
    using T = decltype(of_type);
    TASK2VEC_LAUNCH(local_noise_kernel<T>, grid_of(shape.samples * blocks), dim3(kNoiseThreads), 0, stream_of(at),
                    quads_of<T>(output, shape), quads_of<float>(norm, shape), sigma, shape, key, blocks,
                    quads_of<T>(out, shape));
  });
  check(cudaGetLastError());
}

void local_noise_backward(const void* grad,
                          Scalar scalar,
                          const float* norm,
                          const float* sigma,
                          const NoiseShape& shape,
                          const NoiseKey& key,
                          float* sums,
                          float* grad_norm,
                          Place at) {
  if (shape.samples == 0) return;
  DeviceGuard guard(at.device);
  const int64_t parts = ceil_div(shape.filters, kNoiseFilters);
  int lanes = 1;
  while (shape.channels_last && lanes < 32 && lanes * 4 < shape.filters) lanes *= 2;
  with_scalar(scalar, [&](auto of_type) {
    using T = decltype(of_type);
    TASK2VEC_LAUNCH(local_noise_backward_kernel<T>,
                    grid_of(shape.samples * ceil_div(shape.positions, kNoiseTile) * parts), dim3(kNoiseThreads), 0,
                    stream_of(at), quads_of<T>(grad, shape), quads_of<float>(norm, shape), sigma, shape, key, lanes,
                    sums, grad_norm);
  });
  check(cudaGetLastError());
}

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
