// What the CPU's own routes share: buffers, a sample with its channels side by side, and how a route gets its names.
//
// A route is compiled once per instruction set, into the namespace TASK2VEC_ISA; the rest is in unnamed namespaces
// (simd.h says why). All routes read channels-last: a vector holds neighbouring channels or filters of one pixel. A
// sample in another layout is first copied so, on its own.
#pragma once
#include <algorithm>
#include <limits>

#include "cpu/instruction_sets.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace task2vec {
namespace {

template <class T>
T* scratch(Slot slot, ptrdiff_t count) {
  constexpr ptrdiff_t kSlack = 2 * kColumns<T>;  // a vector at the end may reach beyond it
  return static_cast<T*>(scratch_bytes(slot, static_cast<size_t>(count + kSlack) * sizeof(T)));
}

// One sample with its channels side by side.
template <class T>
struct Image {
  const T* data;
  int64_t stride_h, stride_w;
  int channels, height, width;

  const T* at(int64_t h, int64_t w) const { return data + h * stride_h + w * stride_w; }
};

// The sample itself where its channels are adjacent and, if `whole_columns`, fill whole tiles; else a copy.
template <class T>
Image<T> channels_last(const T* data,
                       const std::array<int64_t, 3>& stride,
                       int channels,
                       int height,
                       int width,
                       bool whole_columns,
                       Slot slot) {
  if ((stride[0] == 1 || channels == 1) && !(whole_columns && channels % kColumns<T>))
    return {data, stride[1], stride[2], channels, height, width};
  const int64_t pitch = whole_columns ? round_up(channels, kColumns<T>) : channels;
  T* copy = scratch<T>(slot, height * width * pitch);
  constexpr int kBlock = 16;
  for (int h = 0; h < height; ++h)
    for (int w0 = 0; w0 < width; w0 += kBlock)
      for (int c = 0; c < pitch; ++c)
        for (int w = w0; w < std::min(w0 + kBlock, width); ++w)
          copy[(int64_t{h} * width + w) * pitch + c] =
              c < channels ? data[c * stride[0] + h * stride[1] + w * stride[2]] : T(0);
  return {copy, width * pitch, pitch, channels, height, width};
}

}  // namespace

namespace TASK2VEC_ISA {

// By the direct route, the filters whose result is not finite, or less than `least` of the size of the terms that it is
// a sum of: there the terms cancelled, underflowed or overflowed, and the direct route's do not. Others keep their
// bits.
template <class T>
void recompute_lost(const CpuTask<T>& task,
                    const T* sizes,  // [filters], in no slot that the direct route uses
                    T least) {
  const auto lost = [&](int o) {
    return !(task.out[o] >= least * sizes[o] && task.out[o] <= std::numeric_limits<T>::max());
  };
  for (int first = 0, last; first < task.filters; first = last) {
    for (last = first + 1; last < task.filters && lost(last) == lost(first); ++last) {
    }
    if (!lost(first)) continue;
    CpuTask<T> part = task;
    part.grad_output += first * task.grad_stride[0];
    part.out += first;
    part.filters = last - first;
    direct(part);
  }
}

}  // namespace TASK2VEC_ISA
}  // namespace task2vec

// Defines TASK2VEC_ISA::name from name##_route, for both types.
#define TASK2VEC_ROUTE(name)               \
  namespace TASK2VEC_ISA {                 \
  void name(const CpuTask<float>& task) {  \
    name##_route(task);                    \
    trim_scratch();                        \
  }                                        \
  void name(const CpuTask<double>& task) { \
    name##_route(task);                    \
    trim_scratch();                        \
  }                                        \
  }
