// Compile a CUDA kernel either with nvcc or, for tests on machines without a GPU, with a plain
// C++ compiler: every CUDA thread of a block is a fiber, blocks run one after another.
//
// It finds wrong indices, missing barriers and wrong shuffles. It does not find races, misaligned
// vector loads or slowness: those need a GPU and compute-sanitizer.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SIMT_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#else
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local  // one OS thread runs one block at a time
#define SIMT_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), simt::launch(grid, block, [&] { kernel(__VA_ARGS__); }))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaGetLastError() { return 0; }
inline cudaError_t cudaGetDevice(int* d) { return *d = 0; }
inline cudaError_t cudaSetDevice(int) { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
constexpr cudaError_t cudaSuccess = 0;

namespace simt {
constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10, kSlot = 64;  // bytes per fiber stack; bytes one lane can exchange

enum class State { ready, at_block_barrier, at_warp_barrier, done };
struct Fiber {
  void* resume[5];
  State state;
  unsigned mask, exchanges;
  bool started = false;
  dim3 tid;
  std::unique_ptr<char[]> stack{new char[kStack]};
};
struct Warp {
  alignas(16) char slot[2][kWarp][kSlot];  // double-buffered: one barrier per exchange suffices
};
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  void* scheduler[5];
  const std::function<void()>* body;
  size_t current, threads;
  std::exception_ptr error;
};
inline thread_local Block block;

[[gnu::noinline]] inline void wait(State why, unsigned mask = 0) {
  Fiber& f = block.fibers[block.current];
  f.state = why;
  f.mask = mask;
  if (!__builtin_setjmp(f.resume)) __builtin_longjmp(block.scheduler, 1);
}
inline void fiber_main() {  // a fiber serves the same thread index of block after block
  for (;;) {
    try {
      (*block.body)();
    } catch (...) {
      block.error = std::current_exception();
    }
    wait(State::done);
  }
}
[[gnu::noinline]] inline void run(size_t i) {
  Fiber& f = block.fibers[i];
  block.current = i;
  threadIdx = f.tid;
  if (__builtin_setjmp(block.scheduler)) return;
  if (f.started) __builtin_longjmp(f.resume, 1);
  f.started = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = f.stack.get();
  start.uc_stack.ss_size = kStack;
  makecontext(&start, fiber_main, 0);
  setcontext(&start);
}
// Releases every barrier whose participants have all arrived; false if there was none.
inline bool release_barriers() {
  auto& fs = block.fibers;
  const size_t n = block.threads;
  bool any = false, whole_block = true;
  for (size_t w = 0; w < n; w += kWarp) {
    const unsigned lanes = unsigned(std::min<size_t>(kWarp, n - w));
    for (unsigned todo = ~0u, i = 0; i < lanes; ++i) {
      whole_block &= fs[w + i].state == State::done || fs[w + i].state == State::at_block_barrier;
      if (!(todo >> i & 1) || fs[w + i].state != State::at_warp_barrier) continue;
      const unsigned mask = fs[w + i].mask;
      todo &= ~mask;
      bool full = true;
      for (unsigned l = 0; l < lanes; ++l)
        if (mask >> l & 1) full &= fs[w + l].state == State::at_warp_barrier && fs[w + l].mask == mask;
      if (!full) continue;
      for (unsigned l = 0; l < lanes; ++l)
        if (mask >> l & 1) fs[w + l].state = State::ready;
      any = true;
    }
  }
  if (!any && whole_block)
    for (size_t i = 0; i < n; ++i)
      if (fs[i].state == State::at_block_barrier) fs[i].state = State::ready, any = true;
  return any;
}
// Fibers that stopped halfway must not be resumed by the next launch.
[[noreturn]] inline void abandon(std::exception_ptr error) {
  block.fibers.clear();
  block.warps.clear();
  std::rethrow_exception(error);
}
inline void run_block(const std::function<void()>& body) {
  const size_t n = block.threads = size_t(blockDim.x) * blockDim.y * blockDim.z;
  block.body = &body;
  if (block.fibers.size() < n) block.fibers.resize(n), block.warps.resize((n + kWarp - 1) / kWarp);
  for (size_t i = 0; i < n; ++i) {
    Fiber& f = block.fibers[i];
    f.state = State::ready, f.exchanges = 0;
    f.tid = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (size_t(blockDim.x) * blockDim.y));
  }
  for (;;) {
    bool alive = false;
    for (size_t i = 0; i < n; ++i) {
      if (block.fibers[i].state == State::ready) run(i);
      if (block.error) abandon(std::exchange(block.error, nullptr));
      alive |= block.fibers[i].state != State::done;
    }
    if (!alive) return;
    if (!release_barriers())
      abandon(std::make_exception_ptr(std::logic_error("simt: deadlock, a barrier is not reached by all threads")));
  }
}
inline void launch(dim3 grid, dim3 block_dim, const std::function<void()>& body) {
  gridDim = grid, blockDim = block_dim;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) blockIdx = dim3(x, y, z), run_block(body);
}
using Slots = const char (*)[kSlot];

// Every lane in mask publishes v; returns access to the values of all lanes.
template <class T>
Slots exchange(unsigned mask, const T& v) {
  static_assert(sizeof(T) <= kSlot);
  Fiber& f = block.fibers[block.current];
  Warp& w = block.warps[block.current / kWarp];
  auto* slots = w.slot[f.exchanges++ & 1];
  std::memcpy(slots[block.current % kWarp], &v, sizeof(T));
  wait(State::at_warp_barrier, mask);
  return slots;
}
template <class T>
T lane_value(Slots slots, int lane) {
  T v;
  std::memcpy(&v, slots[lane], sizeof(T));
  return v;
}
inline int lane() { return int(block.current % kWarp); }
}  // namespace simt

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
#endif
