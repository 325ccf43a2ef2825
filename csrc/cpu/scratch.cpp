#include "cpu/scratch.h"

#include <algorithm>
#include <atomic>

#include "cpu/aligned.h"
#include "kernels.h"

namespace task2vec {
namespace {

std::atomic<int64_t> held_by_all{0}, most_held{0};

void count(int64_t change) {
  const int64_t now = held_by_all += change;
  int64_t most = most_held;
  while (most < now && !most_held.compare_exchange_weak(most, now)) {
  }
}

class Scratch {
 public:
  void* get(Slot slot, size_t bytes) {
    if (buffers_[slot].size() < bytes) {
      release(buffers_[slot]);  // nothing in it is worth moving
      buffers_[slot].resize(bytes);
      held_ += bytes;
      count(static_cast<int64_t>(bytes));
    }
    return buffers_[slot].data();
  }
  void trim() {
    const auto smaller = [](const Buffer& a, const Buffer& b) { return a.size() < b.size(); };
    while (held_ > kKeptBytes) release(*std::max_element(buffers_, buffers_ + kSlots, smaller));
  }
  ~Scratch() {
    for (Buffer& buffer : buffers_) release(buffer);
  }

 private:
  using Buffer = AlignedVector<unsigned char>;
  Buffer buffers_[kSlots];
  size_t held_ = 0;

  void release(Buffer& buffer) {
    count(-static_cast<int64_t>(buffer.size()));
    held_ -= buffer.size();
    Buffer().swap(buffer);
  }
};
thread_local Scratch scratch;

}  // namespace

void* scratch_bytes(Slot slot, size_t bytes) { return scratch.get(slot, bytes); }
void trim_scratch() { scratch.trim(); }
int64_t scratch_peak() { return most_held.exchange(held_by_all); }

}  // namespace task2vec
