// Input types: all arithmetic is float32, whatever the arrays hold.
#pragma once
#include <stdexcept>
#include <type_traits>

#include "cuda/device.h"
#include "kernels.h"

namespace task2vec {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float(float v) {
  return __float2half(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float v) {
  return __float2bfloat16(v);
}

// Neighbours that one load brings.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Vector {
  T value[kCount];
};

// A typed view of Array4 that a kernel takes by value.
template <class T>
struct View4 {
  const T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;

  explicit View4(const Array4& a)
      : data(static_cast<const T*>(a.data)),
        stride_n(a.stride[0]),
        stride_c(a.stride[1]),
        stride_h(a.stride[2]),
        stride_w(a.stride[3]) {}

  __device__ __forceinline__ const T* plane(int64_t n, int64_t c) const { return data + n * stride_n + c * stride_c; }
};

// Calls f with a value of the C++ type that scalar names.
template <class F>
void with_scalar(Scalar scalar, F&& f) {
  switch (scalar) {
    case Scalar::kFloat32:
      return f(float{});
    case Scalar::kFloat16:
      return f(__half{});
    case Scalar::kBFloat16:
      return f(__nv_bfloat16{});
  }
  throw std::invalid_argument("task2vec_ext: unknown scalar type");
}

}  // namespace task2vec
