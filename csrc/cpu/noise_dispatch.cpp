// Spreads samples and tiles of locations, or filters, over threads.
#include <algorithm>

#include "cpu/instruction_sets.h"

namespace task2vec {
namespace {

template <class T>
const NoiseLoops<T>& loops() {
  if constexpr (sizeof(T) == sizeof(float))
    return instruction_set().noise_f32;
  else
    return instruction_set().noise_f64;
}

template <class T>
void for_each_tile(LocalNoiseTask<T> task, void (*loop)(const LocalNoiseTask<T>&)) {
  const NoiseShape& shape = task.shape;
  const int64_t tiles = (shape.positions + kNoiseTile - 1) / kNoiseTile;
#pragma omp parallel for schedule(static) firstprivate(task)
  for (int64_t i = 0; i < shape.samples * tiles; ++i) {
    task.sample = i / tiles;
    task.first = static_cast<int>(i % tiles * kNoiseTile);
    task.last = std::min(task.first + kNoiseTile, shape.positions);
    loop(task);
  }
}

}  // namespace

template <class T>
void local_noise(const T* output, const T* norm, const T* sigma, const NoiseShape& shape, const NoiseKey& key, T* out) {
  for_each_tile<T>({output, norm, sigma, shape, key, 0, 0, 0, out, nullptr, nullptr}, loops<T>().local);
}

template <class T>
void local_noise_backward(const T* grad,
                          const T* norm,
                          const T* sigma,
                          const NoiseShape& shape,
                          const NoiseKey& key,
                          T* sums,
                          T* grad_norm) {
  for_each_tile<T>({grad, norm, sigma, shape, key, 0, 0, 0, nullptr, sums, grad_norm}, loops<T>().local_backward);
}

template <class T>
void weight_noise(const T* weight,
                  const T* sigma,
                  const int64_t* starts,
                  int64_t filters,
                  const NoiseKey& key,
                  T* out) {
  const auto loop = loops<T>().weights;
#pragma omp parallel for schedule(static)
  for (int64_t o = 0; o < filters; ++o)
    loop({weight + starts[o], sigma[o], static_cast<uint32_t>(o), starts[o + 1] - starts[o], key, out + starts[o]});
}

template <class T>
void weight_noise_backward(const T* grad, const int64_t* starts, int64_t filters, const NoiseKey& key, T* sums) {
  const auto loop = loops<T>().weights_backward;
#pragma omp parallel for schedule(static)
  for (int64_t o = 0; o < filters; ++o)
    loop({grad + starts[o], T(0), static_cast<uint32_t>(o), starts[o + 1] - starts[o], key, sums + o});
}

#define TASK2VEC_INSTANTIATE(T)                                                                                 \
  template void local_noise(const T*, const T*, const T*, const NoiseShape&, const NoiseKey&, T*);              \
  template void local_noise_backward(const T*, const T*, const T*, const NoiseShape&, const NoiseKey&, T*, T*); \
  template void weight_noise(const T*, const T*, const int64_t*, int64_t, const NoiseKey&, T*);                 \
  template void weight_noise_backward(const T*, const int64_t*, int64_t, const NoiseKey&, T*);
TASK2VEC_INSTANTIATE(float)
TASK2VEC_INSTANTIATE(double)
#undef TASK2VEC_INSTANTIATE

}  // namespace task2vec
