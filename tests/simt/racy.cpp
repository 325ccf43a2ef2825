#include "racy.h"

#include "cuda/device.h"

namespace {

using task2vec::copies_commit;
using task2vec::copies_wait;
using task2vec::copy_async;

constexpr int kThreads = 64;

// A value handed from one thread of a block to another through shared memory.
template <class Barrier>
void hand_over(float* out, int distance, Barrier barrier) {
  __shared__ float tile[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  tile[thread] = static_cast<float>(thread);
  barrier();
  out[thread] = tile[(thread + distance) % kThreads];
}
void barrier_kernel(float* out) {
  hand_over(out, 33, [] { __syncthreads(); });
}
void no_barrier_kernel(float* out) {
  hand_over(out, 33, [] {});
}
void warp_barrier_kernel(float* out) {
  __shared__ float tile[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  tile[thread] = static_cast<float>(thread);
  __syncwarp();
  out[thread] = tile[thread ^ 5];
}
void half_warp_barrier_kernel(float* out) {  // lanes of different halves meet at different barriers
  __shared__ float tile[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  tile[thread] = static_cast<float>(thread);
  __syncwarp(thread % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  out[thread] = tile[thread ^ 5];
  __syncwarp();
  out[thread] += tile[thread ^ 16];
}
void warp_barrier_between_warps_kernel(float* out) {
  hand_over(out, 33, [] { __syncwarp(); });
}
void half_warp_barrier_between_halves_kernel(float* out) {
  hand_over(out, 16, [] { __syncwarp(threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u); });
}
void shuffle_kernel(float* out) {  // it moves a number and orders no memory
  hand_over(out, 1, [] { __shfl_xor_sync(~0u, 0, 1); });
}
void everyone_writes_kernel(float* out) { out[0] = static_cast<float>(threadIdx.x); }
void used_again_kernel(float* out) {  // the second turn writes while the first is still read
  for (int turn = 0; turn < 2; ++turn) hand_over(out, 33, [] { __syncthreads(); });
}
void next_block_kernel(float* out) {  // blocks run one after another: never reported
  out[threadIdx.x] = static_cast<float>(blockIdx.x);
}
template <int kPending>
void copy(float* out) {
  alignas(16) static const float source[kThreads] = {};
  TASK2VEC_DYNAMIC_SHARED(shared);
  float* const tile = reinterpret_cast<float*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  copy_async<4>(tile + thread, source + thread, false);
  copies_commit();
  copies_wait<kPending>();
  __syncthreads();
  out[thread] = tile[(thread + 33) % kThreads];
  copies_wait<0>();
}
void copy_kernel(float* out) { copy<0>(out); }
void copy_not_waited_for_kernel(float* out) { copy<1>(out); }
struct alignas(16) Vector {
  float value[4];
};
void misaligned_copy_kernel(float* out) {  // an exception of the emulation, and no race
  TASK2VEC_DYNAMIC_SHARED(shared);
  copy_async<16>(shared, out + 1, false);
}
void misaligned_kernel(float* out) {
  if (threadIdx.x == 0) *reinterpret_cast<Vector*>(out + 1) = Vector{};
}

void too_much_kernel(float*) {}

struct Kernel {
  const char* name;
  void (*kernel)(float*);
  size_t shared_bytes = sizeof(float) * kThreads;
};
const Kernel kKernels[] = {
    {"barrier", barrier_kernel},
    {"no-barrier", no_barrier_kernel},
    {"warp-barrier", warp_barrier_kernel},
    {"half-warp-barrier", half_warp_barrier_kernel},
    {"warp-barrier-between-warps", warp_barrier_between_warps_kernel},
    {"half-warp-barrier-between-halves", half_warp_barrier_between_halves_kernel},
    {"shuffle", shuffle_kernel},
    {"everyone-writes", everyone_writes_kernel},
    {"used-again", used_again_kernel},
    {"next-block", next_block_kernel},
    {"copy", copy_kernel},
    {"copy-not-waited-for", copy_not_waited_for_kernel},
    {"misaligned", misaligned_kernel},
    {"misaligned-copy", misaligned_copy_kernel},
    {"too-much-shared-memory", too_much_kernel, (48 << 10) + 1},
};

}  // namespace

void run_racy(const std::string& name) {
  alignas(16) float out[kThreads + 4];
  for (const auto& kernel : kKernels)
    if (kernel.name == name)
      return TASK2VEC_LAUNCH(kernel.kernel, dim3(2), dim3(kThreads), kernel.shared_bytes, nullptr, out);
  throw std::invalid_argument("races: unknown part or kernel " + name);
}
