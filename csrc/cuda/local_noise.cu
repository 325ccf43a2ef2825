// local_noise on a GPU. One read of what the noise is added to and one write; a thread draws four numbers at a time,
// for four neighbouring filters.
#include <initializer_list>

#include "cuda/launch.h"
#include "cuda/scalar.cuh"
#include "philox.h"

namespace task2vec {
namespace {

constexpr int kNoiseThreads = 256, kNoiseWarps = kNoiseThreads / 32;
constexpr int kQuadsOfThread = 4;  // of the forward pass

// Where four neighbouring filters of a location are: far apart, side by side, or where one load reaches them, all four.
enum class Layout { kFirst, kLast, kVectors };

// The filters of one sample by fours, some of which may not exist. All indices inside a sample are 32 bits.
template <class T, Layout kLayout>
struct Quads {
  T* data;
  int filters, positions;

  __device__ __forceinline__ Quads of(int64_t n) const { return {data + n * filters * positions, filters, positions}; }
  __device__ __forceinline__ int offset(int o, int q) const {
    return kLayout == Layout::kFirst ? o * positions + q : q * filters + o;
  }
  __device__ __forceinline__ void read(int o, int q, float (&to)[4]) const {
    const T* const first = data + offset(o, q);
    if constexpr (kLayout == Layout::kVectors) {
      const auto quad = *reinterpret_cast<const Vector<T, 4>*>(first);
#pragma unroll
      for (int k = 0; k < 4; ++k) to[k] = to_float(quad.value[k]);
    } else {
      const int step = kLayout == Layout::kLast ? 1 : positions;
#pragma unroll
      for (int k = 0; k < 4; ++k) to[k] = o + k < filters ? to_float(first[int64_t{k} * step]) : 0.f;
    }
  }
  __device__ __forceinline__ void write(int o, int q, const float (&from)[4]) const {
    T* const first = data + offset(o, q);
    if constexpr (kLayout == Layout::kVectors) {
      Vector<T, 4> quad;
#pragma unroll
      for (int k = 0; k < 4; ++k) quad.value[k] = from_float<T>(from[k]);
      *reinterpret_cast<Vector<T, 4>*>(first) = quad;
    } else {
      const int step = kLayout == Layout::kLast ? 1 : positions;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (o + k < filters) first[int64_t{k} * step] = from_float<T>(from[k]);
    }
  }
};

// The quotient of numbers below 2^31, by a multiplication: Granlund and Montgomery, "Division by invariant integers
// using multiplication", PLDI 1994.
struct Divisor {
  uint32_t value, multiplier = 0, shift = 0;

  explicit Divisor(uint32_t value) : value(value) {
    if (value < 2) return;
    while (uint64_t{1} << (shift + 1) < value) ++shift;  // 2^(shift + 1) ≥ value
    multiplier = static_cast<uint32_t>((uint64_t{1} << (32 + shift)) / value + 1);
  }
  __device__ __forceinline__ uint32_t divide(uint32_t number) const {
    return value < 2 ? number : static_cast<uint32_t>(uint64_t{number} * multiplier >> 32) >> shift;
  }
};

// The noise of one sample.
struct Noise {
  uint64_t first;  // block of the first filters at the first location
  int columns;     // fours of filters
  NoiseKey key;

  __device__ __forceinline__ Noise(const NoiseShape& shape, const NoiseKey& key, int64_t n)
      : columns((shape.filters + 3) / 4), key(key) {
    first = static_cast<uint64_t>(n * shape.positions) * static_cast<uint64_t>(columns);
  }
  __device__ __forceinline__ void draw(int o, int q, float (&e)[4]) const {
    const uint64_t block = first + static_cast<uint32_t>(q * columns + o / 4);
    normals(key, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), e[0], e[1], e[2], e[3]);
  }
};

template <Layout kLayout>
__device__ __forceinline__ void read_sigma(const float* sigma, int filters, int o, float (&to)[4]) {
  if constexpr (kLayout == Layout::kVectors) {
    const auto quad = *reinterpret_cast<const Vector<float, 4>*>(sigma + o);
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k] = quad.value[k];
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k] = o + k < filters ? __ldg(sigma + o + k) : 0.f;
  }
}

// Norms of one sample: of every filter, or of a location.
template <Layout kLayout, bool kOfFilter>
struct Norms {
  Quads<float, kLayout> quads;

  __device__ __forceinline__ Norms of(int64_t n) const {
    if constexpr (kOfFilter)
      return {quads.of(n)};
    else
      return {{quads.data + n * quads.positions, quads.filters, quads.positions}};
  }
  __device__ __forceinline__ void read(int o, int q, float (&to)[4]) const {
    if constexpr (kOfFilter) {
      quads.read(o, q, to);
    } else {
      const float all = __ldg(quads.data + q);
#pragma unroll
      for (int k = 0; k < 4; ++k) to[k] = all;
    }
  }
};

template <class T, Layout kLayout, bool kOfFilter>
__global__ void __launch_bounds__(kNoiseThreads) local_noise_kernel(Quads<T, kLayout> from,
                                                                    Norms<kLayout, kOfFilter> norm,
                                                                    const float* __restrict__ sigma,
                                                                    NoiseShape shape,
                                                                    NoiseKey key,
                                                                    Divisor inner,  // of the indices below
                                                                    int blocks_of_sample,
                                                                    Quads<T, kLayout> to) {
  const int64_t n = blockIdx.x / blocks_of_sample;
  const Noise noise(shape, key, n);
  from = from.of(n), norm = norm.of(n), to = to.of(n);
  uint32_t i = blockIdx.x % blocks_of_sample * (kNoiseThreads * kQuadsOfThread) + threadIdx.x;
  const uint32_t end = static_cast<uint32_t>(noise.columns) * static_cast<uint32_t>(shape.positions);
#pragma unroll 1
  for (int turn = 0; turn < kQuadsOfThread && i < end; ++turn, i += kNoiseThreads) {
    // Neighbouring threads take what lies side by side: channels-last columns, else locations.
    const uint32_t outer = inner.divide(i), rest = i - outer * inner.value;
    const int q = static_cast<int>(kLayout == Layout::kFirst ? rest : outer);
    const int o = static_cast<int>(kLayout == Layout::kFirst ? outer : rest) * 4;
    float e[4], s[4], r[4], x[4];
    from.read(o, q, x);
    norm.read(o, q, r);
    read_sigma<kLayout>(sigma, shape.filters, o, s);
    noise.draw(o, q, e);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] += s[k] * r[k] * e[k];
    to.write(o, q, x);
  }
}

// A block takes one tile of locations and kNoiseFilters filters. Channels-last, the lanes of a warp are filters, as
// many of them as there are (a power of two), and then locations; else they are locations.
template <class T, Layout kLayout, bool kOfFilter>
__global__ void __launch_bounds__(kNoiseThreads, 2)
    local_noise_backward_kernel(Quads<T, kLayout> grad,
                                Norms<kLayout, kOfFilter> norm,
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
  const bool reduce = grad_norm && !kOfFilter;
  const Noise noise(shape, key, n);
  grad = grad.of(n), norm = norm.of(n);
  const Quads<float, kLayout> own_norm =
      Quads<float, kLayout>{grad_norm, shape.filters, shape.positions}.of(grad_norm && kOfFilter ? n : 0);
  float* to_norm = reduce ? grad_norm + (part * shape.samples + n) * shape.positions : nullptr;

  // What one thread sums of four filters and, of all its filters, at one location.
  float total[4], at_location;
  const auto visit = [&](int column, int q) {
    const int o = part * kNoiseFilters + column * 4;
    float e[4], s[4], r[4], x[4];
    grad.read(o, q, x);
    norm.read(o, q, r);
    read_sigma<kLayout>(sigma, shape.filters, o, s);
    noise.draw(o, q, e);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      e[k] *= x[k];
      total[k] += r[k] * e[k];
      e[k] *= s[k];
      at_location += e[k];
    }
    if (kOfFilter && grad_norm) own_norm.write(o, q, e);
  };
  float* to_sums = sums + (n * tiles + tile) * shape.filters + part * kNoiseFilters;
  const auto write_sum = [&](int column, int k, float value) {
    if (part * kNoiseFilters + column * 4 + k < shape.filters) to_sums[column * 4 + k] = value;
  };

  if constexpr (kLayout != Layout::kFirst) {
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
  } else {
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
}
static_assert(kNoiseFilters == 4 * 32, "a warp's lanes are the filters of one part");

// Calls f with the layout that all the arrays have, as Layout, and with whether norms are of filters.
template <class T, class F>
void with_layout(const NoiseShape& shape,
                 std::initializer_list<const void*> floats,
                 const void* x,
                 const void* y,
                 F&& f) {
  if (int64_t{shape.filters} * shape.positions >= int64_t{1} << 31)
    throw std::length_error("local_noise: expected fewer than 2^31 numbers in a sample");
  const auto vectors = [](const void* data, size_t size) {
    return reinterpret_cast<uintptr_t>(data) % (4 * size) == 0;
  };
  bool aligned = shape.filters % 4 == 0 && vectors(x, sizeof(T)) && vectors(y, sizeof(T));
  for (const void* data : floats) aligned = aligned && vectors(data, sizeof(float));
  const auto of_filter = [&](auto layout) {
    if (shape.norm_of_filter)
      f(layout, std::true_type{});
    else
      f(layout, std::false_type{});
  };
  if (!shape.channels_last)
    of_filter(std::integral_constant<Layout, Layout::kFirst>{});
  else if (aligned)
    of_filter(std::integral_constant<Layout, Layout::kVectors>{});
  else
    of_filter(std::integral_constant<Layout, Layout::kLast>{});
}

template <class T, Layout kLayout>
Quads<T, kLayout> quads_of(const void* data, const NoiseShape& shape) {
  return {static_cast<T*>(const_cast<void*>(data)), shape.filters, shape.positions};
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
  const int64_t columns = ceil_div(shape.filters, 4);
  const int blocks = static_cast<int>(ceil_div(columns * shape.positions, kNoiseThreads * kQuadsOfThread));
  with_scalar(scalar, [&](auto of_type) {
    using T = decltype(of_type);
    with_layout<T>(shape, {norm, sigma}, output, out, [&](auto layout, auto of_filter) {
      constexpr Layout kLayout = decltype(layout)::value;
      constexpr bool kOfFilter = decltype(of_filter)::value;
      const Norms<kLayout, kOfFilter> norms{quads_of<float, kLayout>(norm, shape)};
      const Divisor inner(static_cast<uint32_t>(kLayout == Layout::kFirst ? shape.positions : columns));
      TASK2VEC_LAUNCH((local_noise_kernel<T, kLayout, kOfFilter>), grid_of(shape.samples * blocks), dim3(kNoiseThreads),
                      0, stream_of(at), (quads_of<T, kLayout>(output, shape)), norms, sigma, shape, key, inner, blocks,
                      (quads_of<T, kLayout>(out, shape)));
    });
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
    with_layout<T>(shape, {norm, sigma, grad_norm}, grad, grad, [&](auto layout, auto of_filter) {
      constexpr Layout kLayout = decltype(layout)::value;
      constexpr bool kOfFilter = decltype(of_filter)::value;
      const Norms<kLayout, kOfFilter> norms{quads_of<float, kLayout>(norm, shape)};
      TASK2VEC_LAUNCH((local_noise_backward_kernel<T, kLayout, kOfFilter>),
                      grid_of(shape.samples * ceil_div(shape.positions, kNoiseTile) * parts), dim3(kNoiseThreads), 0,
                      stream_of(at), (quads_of<T, kLayout>(grad, shape)), norms, sigma, shape, key, lanes, sums,
                      grad_norm);
    });
  });
  check(cudaGetLastError());
}

}  // namespace task2vec
