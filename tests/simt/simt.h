// CUDA's threads on a CPU: every thread of a block is a fiber, blocks run one after another.
//
// It finds wrong indices, missing barriers and waits, wrong shuffles and fragments, and shared memory that is read
// before it is written. Compiled with -fsanitize=thread it finds races between the threads of a block, with
// -fsanitize=alignment misaligned loads and stores. docs/cuda_without_gpu.md says what none of them finds.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#define SIMT_RACES
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SIMT_RACES
#endif
#endif
#ifdef SIMT_RACES
#include <sanitizer/tsan_interface.h>

#include <string>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#define SIMT_UNWATCHED __attribute__((no_sanitize("thread")))  // what the emulation itself does
#else
#define SIMT_UNWATCHED
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
constexpr int kWarp = 32;
#ifdef SIMT_RACES
constexpr size_t kStack = 256 << 10;  // bytes of a fiber's stack: ThreadSanitizer's code needs more
#else
constexpr size_t kStack = 64 << 10;
#endif
constexpr size_t kSlot = 64;   // bytes that one lane can exchange
constexpr int kPoison = 0xff;  // shared memory before it is written: NaN in every type

// What ThreadSanitizer is told. For it every fiber is a thread, and so is the scheduler; switching between them orders
// nothing.
#ifdef SIMT_RACES
struct DestroyWatch {
  void operator()(void* watch) const { __tsan_destroy_fiber(watch); }
};
using Watch = std::unique_ptr<void, DestroyWatch>;
inline Watch new_watch() { return Watch(__tsan_create_fiber(0)); }
SIMT_UNWATCHED inline void* current_watch() { return __tsan_get_current_fiber(); }
SIMT_UNWATCHED inline void switch_watch(void* to) { __tsan_switch_to_fiber(to, __tsan_switch_to_fiber_no_sync); }
struct Unwatched {  // while it lives, accesses of this thread are not recorded
  SIMT_UNWATCHED Unwatched() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  SIMT_UNWATCHED ~Unwatched() { AnnotateIgnoreReadsEnd("", 0), AnnotateIgnoreWritesEnd("", 0); }
};
#else
struct Watch {
  void* get() const { return nullptr; }
};
inline Watch new_watch() { return {}; }
inline void* current_watch() { return nullptr; }
inline void switch_watch(void*) {}
struct Unwatched {
  Unwatched() {}
};
#endif

enum class State { ready, at_block_barrier, at_warp_barrier, at_exchange, done };
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
  Watch watch = new_watch();
};
struct Warp {
  alignas(16) char slot[2][kWarp][kSlot];  // double-buffered: one barrier per exchange suffices
};
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  void* scheduler[5];
  void* scheduler_watch;
  const std::function<void()>* body;
  size_t current, threads, shared_bytes;
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, Free> shared;  // of the size asked for: AddressSanitizer sees its end
  bool failed = false;                          // a plain number, which can be read before memory is ordered
  std::exception_ptr error;
};
inline thread_local Block block;

[[gnu::noinline]] SIMT_UNWATCHED inline void wait(State why, unsigned mask = 0) {
  Fiber& f = block.fibers[block.current];
  f.state = why;
  f.mask = mask;
  if (!__builtin_setjmp(f.resume)) {
    switch_watch(block.scheduler_watch);
    __builtin_longjmp(block.scheduler, 1);
  }
}
SIMT_UNWATCHED inline void fiber_main() {  // a fiber serves the same thread index of block after block
  for (;;) {
    try {
      (*block.body)();
    } catch (...) {
      block.error = std::current_exception(), block.failed = true;
    }
    wait(State::done);
  }
}
[[gnu::noinline]] SIMT_UNWATCHED inline void run(size_t i) {
  Fiber& f = block.fibers[i];
  block.current = i;
  threadIdx = f.tid;
  if (__builtin_setjmp(block.scheduler)) return;
  switch_watch(f.watch.get());
  if (f.started) __builtin_longjmp(f.resume, 1);
  f.started = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = f.stack.get();
  start.uc_stack.ss_size = kStack;
  makecontext(&start, fiber_main, 0);
  setcontext(&start);
}
// Memory is ordered here and nowhere else: what these fibers (and the scheduler) did comes before what they will do.
template <class Among>
SIMT_UNWATCHED void order([[maybe_unused]] bool scheduler_too, [[maybe_unused]] Among among) {
#ifdef SIMT_RACES
  std::vector<void*> watches;
  for (size_t i = 0; i < block.threads; ++i)
    if (among(i)) watches.push_back(block.fibers[i].watch.get());
  if (scheduler_too) watches.push_back(block.scheduler_watch);
  char* const point = new char;  // a new one each time: an old one would order what came before, too
  // Bare pointers: what these lines do is done in the name of the others.
  void* const* const begin = watches.data();
  void* const* const end = begin + watches.size();
  for (void* const* watch = begin; watch != end; ++watch) switch_watch(*watch), __tsan_release(point);
  for (void* const* watch = begin; watch != end; ++watch) switch_watch(*watch), __tsan_acquire(point);
  switch_watch(block.scheduler_watch);
  delete point;
#endif
}
// Releases every barrier whose participants have all arrived; false if there was none. Exchanges order no memory.
SIMT_UNWATCHED inline bool release_barriers() {
  auto& fs = block.fibers;
  const size_t n = block.threads;
  bool any = false, whole_block = true;
  for (size_t w = 0; w < n; w += kWarp) {
    const unsigned lanes = unsigned(std::min<size_t>(kWarp, n - w));
    for (unsigned todo = ~0u, i = 0; i < lanes; ++i) {
      whole_block &= fs[w + i].state == State::done || fs[w + i].state == State::at_block_barrier;
      const State why = fs[w + i].state;
      if (!(todo >> i & 1) || (why != State::at_warp_barrier && why != State::at_exchange)) continue;
      const unsigned mask = fs[w + i].mask;
      todo &= ~mask;
      bool full = true;
      for (unsigned l = 0; l < lanes; ++l)
        if (mask >> l & 1) full &= fs[w + l].state == why && fs[w + l].mask == mask;
      if (!full) continue;
      if (why == State::at_warp_barrier)
        order(false, [=](size_t t) { return t / kWarp == w / kWarp && mask >> t % kWarp & 1; });
      for (unsigned l = 0; l < lanes; ++l)
        if (mask >> l & 1) fs[w + l].state = State::ready;
      any = true;
    }
  }
  if (!any && whole_block) {
    order(false, [&](size_t i) { return fs[i].state == State::at_block_barrier; });
    for (size_t i = 0; i < n; ++i)
      if (fs[i].state == State::at_block_barrier) fs[i].state = State::ready, any = true;
  }
  return any;
}
// Fibers that stopped halfway must not be resumed by the next launch.
[[noreturn]] inline void abandon(std::exception_ptr error) {
  block.fibers.clear();
  block.warps.clear();
  std::rethrow_exception(error);
}
SIMT_UNWATCHED inline void run_block(const std::function<void()>& body) {
  const size_t n = block.threads = size_t(blockDim.x) * blockDim.y * blockDim.z;
  block.body = &body;
  block.scheduler_watch = current_watch();
  if (block.shared_bytes) std::memset(block.shared.get(), kPoison, block.shared_bytes);
  [[maybe_unused]] const size_t named = block.fibers.size();
  if (block.fibers.size() < n) block.fibers.resize(n), block.warps.resize((n + kWarp - 1) / kWarp);
  for (size_t i = 0; i < n; ++i) {
    Fiber& f = block.fibers[i];
    f.state = State::ready, f.exchanges = 0, f.group = 0;
    f.copies.clear();
    f.tid = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (size_t(blockDim.x) * blockDim.y));
  }
#ifdef SIMT_RACES
  for (size_t i = named; i < block.fibers.size(); ++i)
    __tsan_set_fiber_name(block.fibers[i].watch.get(), ("CUDA thread " + std::to_string(i)).c_str());
#endif
  const auto all = [](size_t) { return true; };
  order(true, all);
  for (;;) {
    bool alive = false;
    for (size_t i = 0; i < n; ++i) {
      if (block.fibers[i].state == State::ready) run(i);
      if (block.failed) {
        block.failed = false;
        order(true, all);
        abandon(std::exchange(block.error, nullptr));
      }
      alive |= block.fibers[i].state != State::done;
    }
    if (!alive) return order(true, all);
    if (!release_barriers())
      abandon(std::make_exception_ptr(std::logic_error("simt: deadlock, a barrier is not reached by all threads")));
  }
}
// Kernels that asked for more than 48 KiB of dynamic shared memory, and how much; for all threads of the host.
class Permissions {
 public:
  void allow(const void* kernel, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_[kernel] = bytes;
  }
  void check(const void* kernel, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > 48 << 10 && bytes > bytes_[kernel])
      throw std::runtime_error("simt: more than 48 KiB of shared memory without permission; CUDA refuses it");
  }

 private:
  std::mutex mutex_;
  std::map<const void*, size_t> bytes_;
};
inline Permissions permissions;

SIMT_UNWATCHED inline void launch(const void* kernel,
                                  dim3 grid,
                                  dim3 block_dim,
                                  size_t shared_bytes,
                                  const std::function<void()>& body) {
  permissions.check(kernel, shared_bytes);
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
SIMT_UNWATCHED Slots exchange(unsigned mask, const T& v) {
  static_assert(sizeof(T) <= kSlot);
  Fiber& f = block.fibers[block.current];
  Warp& w = block.warps[block.current / kWarp];
  auto* slots = w.slot[f.exchanges++ & 1];
  {
    Unwatched unwatched;
    std::memcpy(slots[block.current % kWarp], &v, sizeof(T));
  }
  wait(State::at_exchange, mask);
  return slots;
}
template <class T>
SIMT_UNWATCHED T lane_value(Slots slots, int lane) {
  T v;
  Unwatched unwatched;
  std::memcpy(&v, slots[lane], sizeof(T));
  return v;
}
inline int lane() { return int(block.current % kWarp); }
inline void require_alignment(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) throw std::logic_error("simt: misaligned address");
}
}  // namespace simt
