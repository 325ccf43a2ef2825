// What one thread does: one sample, one group, a range of its filters. Formulas and shapes are in kernels.h.
#pragma once
#include "../kernels.h"

namespace task2vec {

template <class T>
struct CpuTask {
  const T* input;        // [group_channels, H, W]
  const T* grad_output;  // [filters, H_out, W_out]
  std::array<int64_t, 3> input_stride, grad_stride;
  Conv conv;
  int filters;
  T* out;  // [filters]
};

// Told by every thread of what it takes (or, negative, gives back), in bytes.
void count_scratch(int64_t change);

// One copy per instruction set; filter_grad_sq_dispatch.cpp takes the best that the processor has.
#define TASK2VEC_CPU_ROUTES(isa)                  \
  namespace isa {                                 \
  void direct(const CpuTask<float>& task);        \
  void direct(const CpuTask<double>& task);       \
  void winograd(const CpuTask<float>& task);      \
  void winograd(const CpuTask<double>& task);     \
  void shifted_gram(const CpuTask<float>& task);  \
  void shifted_gram(const CpuTask<double>& task); \
  }
TASK2VEC_CPU_ROUTES(baseline)
TASK2VEC_CPU_ROUTES(avx2)
TASK2VEC_CPU_ROUTES(avx512)
#undef TASK2VEC_CPU_ROUTES

}  // namespace task2vec
