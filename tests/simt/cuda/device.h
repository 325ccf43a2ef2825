// The device that the tests give csrc/cuda in place of the real one: what its device.h has, for the fibers of simt.h.
#pragma once
#include <cmath>
#include <type_traits>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local  // one OS thread runs one block at a time
#define TASK2VEC_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream),                                                      \
   simt::launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); }))
#define TASK2VEC_DYNAMIC_SHARED(name) unsigned char* const name = simt::block.shared.get()

// ---- the runtime's functions -----------------------------------------------------------------------------

using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaGetLastError() { return 0; }
inline cudaError_t cudaGetDevice(int* d) { return *d = 0; }
inline cudaError_t cudaSetDevice(int) { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = 99 << 10, 0; }  // sm_86
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, int, int bytes) {
  return simt::permissions.allow(reinterpret_cast<const void*>(kernel), size_t(bytes)), 0;
}

// ---- the device's functions ------------------------------------------------------------------------------

inline void __syncthreads() { simt::wait(simt::State::at_block_barrier); }
inline void __syncwarp(unsigned mask = ~0u) { simt::wait(simt::State::at_warp_barrier, mask); }
template <class T>
T __shfl_sync(unsigned mask, T v, int src, int width = 32) {
  const int l = simt::lane();
  return simt::lane_value<T>(simt::exchange(mask, v), (l & ~(width - 1)) + (src & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32) {
  const int l = simt::lane(), s = (l & (width - 1)) + int(d);
  return simt::lane_value<T>(simt::exchange(mask, v), s < width ? l + int(d) : l);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int m, int = 32) {
  const int l = simt::lane();
  return simt::lane_value<T>(simt::exchange(mask, v), l ^ m);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}

// The two 16-bit floating-point types, as storage that converts to float exactly as on the device.
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 v) {
  const uint32_t wide = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &wide, sizeof f);
  return f;
}
inline float __half2float(__half v) {
  _Float16 f;
  std::memcpy(&f, &v, sizeof f);
  return float(f);
}
inline __nv_bfloat16 __float2bfloat16(float v) {
  uint32_t wide;
  std::memcpy(&wide, &v, sizeof wide);
  if (v != v) return {0x7fff};
  return {uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
inline __half __float2half(float v) {
  const _Float16 f = _Float16(v);
  __half h;
  std::memcpy(&h, &f, sizeof h);
  return h;
}

// ---- the instructions of csrc/cuda/device.h --------------------------------------------------------------

namespace task2vec {

// As wrong as the instruction may be, always to the same side.
inline float reciprocal(float value) { return std::nextafter(1 / value, INFINITY); }

// The bytes arrive when they are waited for, and not a moment earlier.
template <int kBytes>
void copy_async(void* shared, const void* global, bool zeros) {
  simt::require_alignment(shared, kBytes), simt::require_alignment(global, kBytes);
  simt::Fiber& f = simt::block.fibers[simt::block.current];
  std::memset(shared, simt::kPoison, kBytes);
  f.copies.push_back({shared, global, kBytes, zeros, f.group});
}
inline void copies_commit() { ++simt::block.fibers[simt::block.current].group; }
template <int kPending>
void copies_wait() {
  simt::Fiber& f = simt::block.fibers[simt::block.current];
  auto arrived = [&](const simt::Copy& copy) { return copy.group + kPending < f.group; };
  for (const simt::Copy& copy : f.copies) {
    if (!arrived(copy)) continue;
    if (copy.zeros)
      std::memset(copy.shared, 0, copy.bytes);
    else
      std::memcpy(copy.shared, copy.global, copy.bytes);
  }
  f.copies.erase(std::remove_if(f.copies.begin(), f.copies.end(), arrived), f.copies.end());
}
inline uint32_t round_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
  return bits;
}
template <int kMatrices>
void load_matrices_transposed(uint32_t (&fragment)[kMatrices], const void* row, int bytes) {
  static_assert(kMatrices == 2 || kMatrices == 4);
  row = static_cast<const unsigned char*>(row) + bytes;
  simt::require_alignment(row, 16);
  const auto slots = simt::exchange(~0u, row);
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  for (int j = 0; j < kMatrices; ++j) {
    uint16_t pair[2];
    for (int half = 0; half < 2; ++half) pair[half] = simt::lane_value<const uint16_t*>(slots, j * 8 + t * 2 + half)[g];
    std::memcpy(&fragment[j], pair, sizeof pair);
  }
}
template <class T>
SIMT_UNWATCHED void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    T a[4][4 / sizeof(T)], b[2][4 / sizeof(T)];  // registers, and what each holds
  } mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  const auto number = [](T value) {
    if constexpr (std::is_same_v<T, float>)
      return value;
    else if constexpr (std::is_same_v<T, __half>)
      return __half2float(value);
    else
      return __bfloat162float(value);
  };
  const auto slots = simt::exchange(~0u, mine);
  constexpr int kPacked = 4 / sizeof(T), kHalf = 4 * kPacked;  // values of k in one register of a quad
  for (int i = 0; i < 4; ++i) {
    const int row = simt::lane() / 4 + i / 2 * 8, column = simt::lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int owner = k % kHalf / kPacked;  // in its quad
      const auto of_a = reinterpret_cast<const Fragments*>(slots[row % 8 * 4 + owner]);
      const auto of_b = reinterpret_cast<const Fragments*>(slots[column * 4 + owner]);
      c[i] += number(of_a->a[row / 8 + k / kHalf * 2][k % kPacked]) * number(of_b->b[k / kHalf][k % kPacked]);
    }
  }
}

}  // namespace task2vec
