// What simd.h takes for a vector where the compiler has no vector type (MSVC): an array whose loops it may vectorise.
#pragma once

namespace task2vec {
namespace {

template <class T, int kCount>
struct PlainVector {
  T lane[kCount];

  T operator[](int i) const { return lane[i]; }

#define TASK2VEC_LANES(op)                                                                   \
  friend PlainVector operator op(PlainVector a, const PlainVector& b) { return a op## = b; } \
  friend PlainVector operator op(PlainVector a, T b) { return a op## = all(b); }             \
  friend PlainVector operator op(T a, const PlainVector& b) { return all(a) op b; }          \
  PlainVector& operator op## = (T b) { return *this op## = all(b); }                         \
  PlainVector& operator op## = (const PlainVector& b) {                                      \
    for (int i = 0; i < kCount; ++i) lane[i] op## = b.lane[i];                               \
    return *this;                                                                            \
  }
  TASK2VEC_LANES(+)
  TASK2VEC_LANES(-)
  TASK2VEC_LANES(*)
  TASK2VEC_LANES(/)
#undef TASK2VEC_LANES

  static PlainVector all(T value) {
    PlainVector v;
    for (T& one : v.lane) one = value;
    return v;
  }
};

}  // namespace
}  // namespace task2vec
