// CUDA's threads on a CPU: every thread of a block is a fiber, blocks run one after another.
//
// It finds wrong indices, missing barriers and waits, wrong shuffles and fragments, and shared memory that is read
// before it is written. It does not find races, misaligned vector loads (but for those of copy_async and
// load_matrices_transposed) or slowness: those need a GPU and compute-sanitizer.
#pragma once
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

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

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
inline void require_alignment(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) throw std::logic_error("simt: misaligned address");
}
}  // namespace simt
