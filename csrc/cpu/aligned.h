// Vectors of numbers that start on a cache line: a 64-byte load that straddles two costs two.
#pragma once
#include <cstddef>
#include <new>
#include <vector>

namespace task2vec {
namespace {  // see simd.h

template <class T>
struct OnCacheLine {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  OnCacheLine() = default;
  template <class U>
  OnCacheLine(const OnCacheLine<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* from, size_t) { ::operator delete(from, kLine); }
  bool operator==(const OnCacheLine&) const { return true; }
  bool operator!=(const OnCacheLine&) const { return false; }
};

template <class T>
using AlignedVector = std::vector<T, OnCacheLine<T>>;

}  // namespace
}  // namespace task2vec
