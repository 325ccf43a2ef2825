// What follows a convolution, in one pass over its output: torch reads and writes it for the bias, for the sum with a
// shortcut and for the ReLU. Rounded after each of these, as torch rounds.
#include "cuda/launch.h"
#include "cuda/scalar.cuh"

namespace task2vec {
namespace {

constexpr int kThreads = 256, kVectorsOfThread = 4;

template <class T>
using Filters = Vector<T, 16 / sizeof(T)>;  // neighbours in memory

template <class T>
__device__ __forceinline__ float rounded(float value) {
  return to_float(from_float<T>(value));
}

template <class T, bool kOther>
__global__ void __launch_bounds__(kThreads) bias_relu_kernel(Filters<T>* output,                    // [rows, columns]
                                                             const float* __restrict__ bias,        // [filters]
                                                             const Filters<T>* __restrict__ other,  // [rows, columns]
                                                             int columns,
                                                             int64_t count) {
  constexpr int kCount = 16 / sizeof(T);
  // A thread stays in one column, whose bias it keeps: all threads together take whole rows.
  const int64_t threads = int64_t{gridDim.x} * kThreads, stride = threads - threads % columns;
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= stride) return;
  const float* const own = bias + i % columns * kCount;
  float b[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) b[k] = rounded<T>(__ldg(own + k));
  for (; i < count; i += stride) {
    Filters<T> y = output[i], z;
    if constexpr (kOther) z = other[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      float value = rounded<T>(to_float(y.value[k]) + b[k]);
      if constexpr (kOther) value = rounded<T>(value + to_float(z.value[k]));
      y.value[k] = from_float<T>(value < 0 ? 0.f : value);  // NaN stays
    }
    output[i] = y;
  }
}

}  // namespace

void bias_relu(void* output, Scalar scalar, const float* bias, const void* other, int64_t rows, int filters, Place at) {
  if (rows == 0) return;
  DeviceGuard guard(at.device);
  with_scalar(scalar, [&](auto of_type) {
    using T = decltype(of_type);
    const int columns = filters / static_cast<int>(16 / sizeof(T));
    const int64_t count = rows * columns;
    const int64_t blocks = std::max(ceil_div(count, kThreads * kVectorsOfThread), ceil_div(columns, kThreads));
    auto* const kernel = other ? bias_relu_kernel<T, true> : bias_relu_kernel<T, false>;
    TASK2VEC_LAUNCH(kernel, grid_of(blocks), dim3(kThreads), 0, stream_of(at), static_cast<Filters<T>*>(output), bias,
                    static_cast<const Filters<T>*>(other), columns, count);
  });
  check(cudaGetLastError());
}

}  // namespace task2vec
