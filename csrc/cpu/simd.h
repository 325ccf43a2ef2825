// Vectors as wide as the instruction set this file is compiled for, and the one loop nest that all routes share.
//
// Included by files that are compiled once per instruction set (CMakeLists.txt). Everything is in an unnamed namespace:
// the linker must never take one instruction set's copy of a function for another's.
#pragma once
#include <cstddef>
#include <cstring>

#include "cpu/plain_vector.h"
#include "kernels.h"

namespace task2vec {
namespace {

// kRows × 2 vectors of sums, two operands and a broadcast must fit the register file.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRows = 4;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRows = 8;
#else
constexpr int kVectorBytes = 16, kRows = 4;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

#if defined(__GNUC__) && !defined(TASK2VEC_PLAIN_VECTORS)  // GCC and Clang
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
inline typename VectorOf<T>::type or_one(typename VectorOf<T>::type v) {
  const typename VectorOf<T>::type zero = {};
  return v == zero ? zero + T(1) : v;
}
#else
#define __builtin_prefetch(address)
template <class T>
struct VectorOf {
  using type = PlainVector<T, kLanes<T> >;
};
template <class T>
PlainVector<T, kLanes<T> > or_one(PlainVector<T, kLanes<T> > v) {
  for (T& one : v.lane)
    if (one == 0) one = 1;
  return v;
}
#endif
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int kColumns = 2 * kLanes<T>;  // of one tile of sums

constexpr ptrdiff_t round_up(ptrdiff_t n, ptrdiff_t multiple) { return (n + multiple - 1) / multiple * multiple; }

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline Vector<T> load_some(const T* from, ptrdiff_t count) {
  Vector<T> v = {};
  std::memcpy(&v, from, static_cast<size_t>(count) * sizeof(T));
  return v;
}

template <class T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

template <class T>
inline T sum(Vector<T> v) {
  T total = 0;
  for (int i = 0; i < kLanes<T>; ++i) total += v[i];
  return total;
}

// A tile of C = Aᵀ·B in registers: kRows × kColumns sums.
template <class T>
struct Tile {
  Vector<T> sums[kRows][2] = {};

  inline void read(const T* from, ptrdiff_t pitch) {
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 2; ++j) sums[r][j] = load(from + r * pitch + j * kLanes<T>);
  }
  inline void write(T* to, ptrdiff_t pitch) const {
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 2; ++j) store(to + r * pitch + j * kLanes<T>, sums[r][j]);
  }

  // sums[r][c] += Σ_k a(r, k) · b[k·b_step + c]: one broadcast and two multiply-adds a row.
  template <class A>
  TASK2VEC_INLINE void accumulate(A a, const T* b, ptrdiff_t b_step, ptrdiff_t depth) {
    for (ptrdiff_t k = 0; k < depth; ++k, b += b_step) {
      const Vector<T> left = load(b), right = load(b + kLanes<T>);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const T factor = a(r, k);
        sums[r][0] += factor * left;
        sums[r][1] += factor * right;
      }
    }
  }
};

}  // namespace
}  // namespace task2vec
