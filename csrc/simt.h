// Compile a CUDA kernel either with nvcc or, for tests on machines without a GPU, with a plain
// C++ compiler: every CUDA thread of a block is a fiber, blocks run one after another.
//
// It finds wrong indices, missing barriers and waits, wrong shuffles and fragments, and shared memory that is read
// before it is written. It does not find races, misaligned vector loads (but for those of mma.cuh) or slowness: those
// need a GPU and compute-sanitizer.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define SIMT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local  // one OS thread runs one block at a time
#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), simt::launch(grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); }))
#define SIMT_DYNAMIC_SHARED(name) unsigned char* const name = simt::block.shared.get()

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
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = 99 << 10, 0; }  // sm_86
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return 0;
}

namespace simt {
constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10, kSlot = 64;  // bytes per fiber stack; bytes one lane can exchange
constexpr int kPoison = 0xff;                    // shared memory before it is written: NaN in every type

enum class State { ready, at_block_barrier, at_warp_barrier, done };
struct Copy {  // of copy_async, on its way
  void* shared;
  const void* global;
  int bytes;
  bool zeros;
  unsigned group;
};
struct Fiber {
  void* resume[5];
  State state;
  unsigned mask, exchanges;
  bool started = false;
  dim3 tid;
  std::vector<Copy> copies;
  unsigned group;
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
  size_t current, threads, shared_bytes;
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, Free> shared;  // of the size asked for: AddressSanitizer sees its end
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
  if (block.shared_bytes) std::memset(block.shared.get(), kPoison, block.shared_bytes);
  if (block.fibers.size() < n) block.fibers.resize(n), block.warps.resize((n + kWarp - 1) / kWarp);
  for (size_t i = 0; i < n; ++i) {
    Fiber& f = block.fibers[i];
    f.state = State::ready, f.exchanges = 0, f.group = 0;
    f.copies.clear();
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
inline void launch(dim3 grid, dim3 block_dim, size_t shared_bytes, const std::function<void()>& body) {
  if (grid.x == 0) throw std::runtime_error("simt: a grid of no blocks; CUDA refuses it");
  gridDim = grid, blockDim = block_dim;
  block.shared_bytes = shared_bytes;
  void* shared = nullptr;
  if (posix_memalign(&shared, 16, shared_bytes)) throw std::bad_alloc();
  block.shared.reset(static_cast<unsigned char*>(shared));
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

// ---- what mma.cuh uses ----

inline void require_alignment(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) throw std::logic_error("simt: misaligned address");
}
// The bytes arrive when they are waited for, and not a moment earlier.
inline void copy_async(void* shared, const void* global, int bytes, bool zeros) {
  require_alignment(shared, bytes), require_alignment(global, bytes);
  Fiber& f = block.fibers[block.current];
  std::memset(shared, kPoison, bytes);
  f.copies.push_back({shared, global, bytes, zeros, f.group});
}
inline void copies_commit() { ++block.fibers[block.current].group; }
inline void copies_wait(unsigned pending) {
  Fiber& f = block.fibers[block.current];
  auto arrived = [&](const Copy& copy) { return copy.group + pending < f.group; };
  for (const Copy& copy : f.copies) {
    if (!arrived(copy)) continue;
    if (copy.zeros)
      std::memset(copy.shared, 0, copy.bytes);
    else
      std::memcpy(copy.shared, copy.global, copy.bytes);
  }
  f.copies.erase(std::remove_if(f.copies.begin(), f.copies.end(), arrived), f.copies.end());
}
inline void load_matrices_transposed(uint32_t* fragment, int matrices, const void* row) {
  require_alignment(row, 16);
  const auto slots = exchange(~0u, row);
  const int g = lane() / 4, t = lane() % 4;
  for (int j = 0; j < matrices; ++j) {
    uint16_t pair[2];
    for (int half = 0; half < 2; ++half) pair[half] = lane_value<const uint16_t*>(slots, j * 8 + t * 2 + half)[g];
    std::memcpy(&fragment[j], pair, sizeof pair);
  }
}
// C [16, 8] += A·B, 32 bytes of depth; T the operands' type.
template <class T, class ToFloat>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ToFloat to_float) {
  struct Fragments {
    T a[4][4 / sizeof(T)], b[2][4 / sizeof(T)];  // registers, and what each holds
  } mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  const auto slots = exchange(~0u, mine);
  constexpr int kPacked = 4 / sizeof(T), kHalf = 4 * kPacked;  // values of k in one register of a quad
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int owner = k % kHalf / kPacked;  // in its quad
      const auto of_a = reinterpret_cast<const Fragments*>(slots[row % 8 * 4 + owner]);
      const auto of_b = reinterpret_cast<const Fragments*>(slots[column * 4 + owner]);
      c[i] += to_float(of_a->a[row / 8 + k / kHalf * 2][k % kPacked]) * to_float(of_b->b[k / kHalf][k % kPacked]);
    }
  }
}
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
#endif
