// local_noise and weight_noise on the CPU: what one thread does. Compiled once per instruction set, into the namespace
// TASK2VEC_ISA. The loops are plain; the compiler makes vectors of them.
#include <algorithm>

#include "cpu/instruction_sets.h"
#include "philox.h"

namespace task2vec {
namespace {

constexpr int kBatch = 64;  // blocks of four numbers drawn at once: with what they go to, in the first cache

// four[j][l] = number j of block first + l·stride, for l < count and some more.
template <class T>
void draw(const NoiseKey& key, uint64_t first, uint32_t stride, int count, T (*four)[kBatch]) {
  constexpr int kLanes = 16;  // numbers in the widest vector
  const NoiseKey own = key;   // or the compiler would think that storing changes it
  const uint32_t low = static_cast<uint32_t>(first), high = static_cast<uint32_t>(first >> 32);
  for (int start = 0; start < count; start += kLanes)
#pragma omp simd
    for (int l = start; l < start + kLanes; ++l) {
      const uint32_t at = low + static_cast<uint32_t>(l) * stride;
      T n0, n1, n2, n3;
      normals(own, at, high + (at < low), n0, n1, n2, n3);
      four[0][l] = n0, four[1][l] = n1, four[2][l] = n2, four[3][l] = n3;
    }
}

// row[4·l + j] = number j of block first + l.
template <class T>
void draw_row(const NoiseKey& key, uint64_t first, int count, T* row) {
  alignas(64) T four[4][kBatch];
  draw(key, first, 1, count, four);
#pragma omp simd
  for (int l = 0; l < count; ++l) {
    row[4 * l] = four[0][l];
    row[4 * l + 1] = four[1][l];
    row[4 * l + 2] = four[2][l];
    row[4 * l + 3] = four[3][l];
  }
}

// Calls f(first filter, first location, count, ε) for runs of numbers that lie side by side in memory: of filters
// (channels-last) or of locations.
template <class T, class F>
void for_each_run(const LocalNoiseTask<T>& task, F&& f) {
  const int filters = task.shape.filters, blocks = (filters + 3) / 4;
  const uint64_t sample = static_cast<uint64_t>(task.sample) * task.shape.positions * blocks;
  if (task.shape.channels_last) {
    alignas(64) T row[4 * kBatch];
    for (int q = task.first; q < task.last; ++q)
      for (int block = 0; block < blocks; block += kBatch) {
        const int count = std::min(kBatch, blocks - block), o = 4 * block;
        draw_row(task.key, sample + static_cast<uint64_t>(q) * blocks + block, count, row);
        f(o, q, std::min(4 * count, filters - o), row);
      }
  } else {
    alignas(64) T four[4][kBatch];
    for (int block = 0; block < blocks; ++block)
      for (int q = task.first; q < task.last; q += kBatch) {
        const int count = std::min(kBatch, task.last - q);
        draw(task.key, sample + static_cast<uint64_t>(q) * blocks + block, static_cast<uint32_t>(blocks), count, four);
        for (int o = 4 * block; o < std::min(4 * block + 4, filters); ++o) f(o, q, count, four[o % 4]);
      }
  }
}

// Where number (o, q) of a sample lies, and its norm's.
template <class T>
struct Offsets {
  const NoiseShape& shape;
  int64_t sample;

  explicit Offsets(const LocalNoiseTask<T>& task) : shape(task.shape), sample(task.sample) {}
  int64_t output(int o, int q) const {
    const int64_t filters = shape.filters, positions = shape.positions;
    return sample * filters * positions + (shape.channels_last ? q * filters + o : o * positions + q);
  }
  int64_t norm(int o, int q) const { return shape.norm_of_filter ? output(o, q) : sample * shape.positions + q; }
};

template <class T>
void forward(const LocalNoiseTask<T>& task) {
  const Offsets<T> at(task);
  const bool last = task.shape.channels_last, whole = task.shape.norm_of_filter;
  for_each_run(task, [&](int o, int q, int count, const T* noise) {
    const T *from = task.output + at.output(o, q), *norm = task.norm + at.norm(o, q), *sigma = task.sigma + o;
    T* to = task.out + at.output(o, q);
    if (last && whole) {
#pragma omp simd
      for (int i = 0; i < count; ++i) to[i] = from[i] + sigma[i] * norm[i] * noise[i];
    } else if (last) {
      const T n = *norm;
#pragma omp simd
      for (int i = 0; i < count; ++i) to[i] = from[i] + n * sigma[i] * noise[i];
    } else {
      const T s = *sigma;
#pragma omp simd
      for (int i = 0; i < count; ++i) to[i] = from[i] + s * norm[i] * noise[i];
    }
  });
}

template <class T>
void backward(const LocalNoiseTask<T>& task) {
  const Offsets<T> at(task);
  const NoiseShape& shape = task.shape;
  const int64_t tiles = (shape.positions + kNoiseTile - 1) / kNoiseTile;
  T* sums = task.sums + (task.sample * tiles + task.first / kNoiseTile) * shape.filters;
  std::fill_n(sums, shape.filters, T(0));
  if (task.grad_norm && !shape.norm_of_filter)
    std::fill(task.grad_norm + at.norm(0, task.first), task.grad_norm + at.norm(0, task.last), T(0));
  for_each_run(task, [&](int o, int q, int count, const T* noise) {
    const T *grad = task.output + at.output(o, q), *norm = task.norm + at.norm(o, q), *sigma = task.sigma + o;
    T* to = task.grad_norm ? task.grad_norm + at.norm(o, q) : nullptr;
    if (shape.channels_last) {
      const int step = shape.norm_of_filter;
      T total = 0;
      if (step) {
#pragma omp simd
        for (int i = 0; i < count; ++i) sums[o + i] += grad[i] * noise[i] * norm[i];
        if (to)
#pragma omp simd
          for (int i = 0; i < count; ++i) to[i] = grad[i] * noise[i] * sigma[i];
      } else {
        const T n = *norm;
#pragma omp simd reduction(+ : total)
        for (int i = 0; i < count; ++i) {
          const T product = grad[i] * noise[i];
          sums[o + i] += product * n;
          total += product * sigma[i];
        }
        if (to) *to += total;
      }
    } else {
      const T s = *sigma;
      T total = 0;
#pragma omp simd reduction(+ : total)
      for (int i = 0; i < count; ++i) total += grad[i] * noise[i] * norm[i];
      sums[o] += total;
      if (to && shape.norm_of_filter)
#pragma omp simd
        for (int i = 0; i < count; ++i) to[i] = s * grad[i] * noise[i];
      else if (to)
#pragma omp simd
        for (int i = 0; i < count; ++i) to[i] += s * grad[i] * noise[i];
    }
  });
}

template <class T, class F>
void for_each_weight_run(const WeightNoiseTask<T>& task, F&& f) {
  alignas(64) T row[4 * kBatch];
  for (int64_t first = 0; first < task.size; first += 4 * kBatch) {
    const int count = static_cast<int>(std::min<int64_t>(4 * kBatch, task.size - first));
    draw_row(task.key, static_cast<uint64_t>(task.filter) << 32 | static_cast<uint64_t>(first / 4), (count + 3) / 4,
             row);
    f(first, count, row);
  }
}

template <class T>
void weights(const WeightNoiseTask<T>& task) {
  for_each_weight_run(task, [&](int64_t first, int count, const T* noise) {
    const T *from = task.weight + first, sigma = task.sigma;
    T* to = task.out + first;
#pragma omp simd
    for (int i = 0; i < count; ++i) to[i] = from[i] + sigma * noise[i];
  });
}

template <class T>
void weights_backward(const WeightNoiseTask<T>& task) {
  double sum = 0;
  for_each_weight_run(task, [&](int64_t first, int count, const T* noise) {
    const T* grad = task.weight + first;
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (int i = 0; i < count; ++i) part += grad[i] * noise[i];
    sum += part;
  });
  *task.out = static_cast<T>(sum);
}

}  // namespace

namespace TASK2VEC_ISA {
void local_noise(const LocalNoiseTask<float>& task) { forward(task); }
void local_noise(const LocalNoiseTask<double>& task) { forward(task); }
void local_noise_backward(const LocalNoiseTask<float>& task) { backward(task); }
void local_noise_backward(const LocalNoiseTask<double>& task) { backward(task); }
void weight_noise(const WeightNoiseTask<float>& task) { weights(task); }
void weight_noise(const WeightNoiseTask<double>& task) { weights(task); }
void weight_noise_backward(const WeightNoiseTask<float>& task) { weights_backward(task); }
void weight_noise_backward(const WeightNoiseTask<double>& task) { weights_backward(task); }
}  // namespace TASK2VEC_ISA
}  // namespace task2vec
