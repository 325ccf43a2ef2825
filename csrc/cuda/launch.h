// What every launch needs: errors as exceptions, and the caller's device for as long as it takes.
#pragma once
#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "kernels.h"

namespace task2vec {

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report this one
  throw std::runtime_error(
      std::string("task2vec_ext: expected a CUDA kernel to start, got: ") + cudaGetErrorString(error) +
      "; if the driver is older than the CUDA that built this module, reinstall from source, or use "
      "device='cpu'.");
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_));
    if (previous_ != device) {
      check(cudaSetDevice(device));
      changed_ = true;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Does something once for each device, whichever thread comes first; the others wait for it. Again if it throws.
class OncePerDevice {
 public:
  template <class F>
  void operator()(int device, F&& f) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::find(done_.begin(), done_.end(), device) != done_.end()) return;
    f();
    done_.push_back(device);
  }

 private:
  std::mutex mutex_;
  std::vector<int> done_;
};

inline cudaStream_t stream_of(Place at) { return static_cast<cudaStream_t>(at.stream); }

// A grid of one dimension is enough for every kernel here; more blocks than CUDA takes is a caller's error.
inline dim3 grid_of(int64_t blocks) {
  constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
  if (blocks > kMaxBlocks) throw std::length_error("task2vec_ext: too many blocks in one launch; use a smaller batch");
  return dim3(static_cast<unsigned>(blocks));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace task2vec
