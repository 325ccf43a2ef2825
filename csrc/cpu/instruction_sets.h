// What is compiled once per instruction set, and how callers reach the best that the processor has.
#pragma once
#include "kernels.h"

namespace task2vec {

// ---- filter_grad_sq: what one thread does, for one sample, one group and a range of its filters (kernels.h) --------

template <class T>
struct CpuTask {
  const T* input;        // [group_channels, H, W]
  const T* grad_output;  // [filters, H_out, W_out]
  std::array<int64_t, 3> input_stride, grad_stride;
  Conv conv;
  int filters;
  T* out;  // [filters]
};

template <class T>
using Route = void (*)(const CpuTask<T>&);

template <class T>
struct Routes {
  Route<T> direct, winograd, shifted_gram;
};

// ---- noise: what one thread does (kernels.h) ----------------------------------------------------------------------

// For one sample, locations first … last − 1.
template <class T>
struct LocalNoiseTask {
  const T *output, *norm, *sigma;  // output or its gradient
  NoiseShape shape;
  NoiseKey key;
  int64_t sample;
  int first, last;
  T *out, *sums, *grad_norm;
};

// For one filter.
template <class T>
struct WeightNoiseTask {
  const T* weight;  // or its gradient
  T sigma;
  uint32_t filter;
  int64_t size;
  NoiseKey key;
  T* out;  // or one sum
};

template <class T>
struct NoiseLoops {
  void (*local)(const LocalNoiseTask<T>&);
  void (*local_backward)(const LocalNoiseTask<T>&);
  void (*weights)(const WeightNoiseTask<T>&);
  void (*weights_backward)(const WeightNoiseTask<T>&);
};

// ---- distances: sums over filters, for a few pairs of rows -----------------------------------------------------

constexpr int kNumerators = 4, kOthers = 2;  // pairs whose sums are in registers: 16 of AVX-512's 32
constexpr int kPad = 16;                     // numbers in the widest vector

// Σ r and Σ r² of r = x/(x + y), float32 lanes; `filters` is a multiple of kPad.
using RatioSums = void (*)(const float* const* x,  // [kNumerators][filters]
                           const float* const* y,  // [kOthers][filters]
                           int filters,
                           float* sums);  // [kNumerators, kOthers, 2]

struct PairSums {
  double rr, qq, rq;
};

// Σ r², Σ q², Σ r·q in float64. r = a/(a + b) at any ratio: scale_a and scale_b bring both rows to one scale.
using ExactSums = PairSums (*)(const double* a, const double* b, int64_t filters, double scale_a, double scale_b);

// ---- the table ------------------------------------------------------------------------------------------------

struct InstructionSet {
  const char* name;
  Routes<float> f32;
  Routes<double> f64;
  RatioSums ratio_sums;
  ExactSums exact_sums;
  NoiseLoops<float> noise_f32;
  NoiseLoops<double> noise_f64;
};

const InstructionSet& instruction_set();

#define TASK2VEC_DECLARE(isa)                                                                             \
  namespace isa {                                                                                         \
  void direct(const CpuTask<float>&);                                                                     \
  void direct(const CpuTask<double>&);                                                                    \
  void winograd(const CpuTask<float>&);                                                                   \
  void winograd(const CpuTask<double>&);                                                                  \
  void shifted_gram(const CpuTask<float>&);                                                               \
  void shifted_gram(const CpuTask<double>&);                                                              \
  void ratio_sums(const float* const* x, const float* const* y, int filters, float* sums);                \
  PairSums exact_sums(const double* a, const double* b, int64_t filters, double scale_a, double scale_b); \
  void local_noise(const LocalNoiseTask<float>&);                                                         \
  void local_noise(const LocalNoiseTask<double>&);                                                        \
  void local_noise_backward(const LocalNoiseTask<float>&);                                                \
  void local_noise_backward(const LocalNoiseTask<double>&);                                               \
  void weight_noise(const WeightNoiseTask<float>&);                                                       \
  void weight_noise(const WeightNoiseTask<double>&);                                                      \
  void weight_noise_backward(const WeightNoiseTask<float>&);                                              \
  void weight_noise_backward(const WeightNoiseTask<double>&);                                             \
  }
TASK2VEC_DECLARE(baseline)
TASK2VEC_DECLARE(avx2)
TASK2VEC_DECLARE(avx512)
#undef TASK2VEC_DECLARE

}  // namespace task2vec
