// Buffers that a thread keeps from call to call: fresh pages for every layer would cost as much as a route.
#pragma once
#include <cstddef>

namespace task2vec {

enum Slot { kInput, kGradOutput, kLeft, kRight, kProduct, kPadded, kSizes, kSlots };

// This thread's buffer, on a cache line; what was in it is lost.
void* scratch_bytes(Slot slot, size_t bytes);

// Gives back what one layer with a large sample needed beyond kKeptBytes.
constexpr size_t kKeptBytes = 16 << 20;
void trim_scratch();

}  // namespace task2vec
