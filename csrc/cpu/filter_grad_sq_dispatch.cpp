// Spreads samples, groups and blocks of filters over threads.
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <exception>

#include "cpu/instruction_sets.h"

namespace task2vec {
namespace {

template <class T>
const Routes<T>& routes() {
  if constexpr (sizeof(T) == sizeof(float))
    return instruction_set().f32;
  else
    return instruction_set().f64;
}

int thread_count() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

template <class T>
void run(Route<T> route, Array4 input, Array4 grad_output, const Conv& conv, T* out) {
  // Fewer samples than threads: share a sample's filters out, in blocks that all routes take anyway.
  constexpr int kBlock = 64;
  const int64_t images = conv.samples * conv.groups;
  const int blocks = (conv.group_filters + kBlock - 1) / kBlock;
  const int64_t wanted = images ? (thread_count() + images - 1) / images : 1;
  const int parts = static_cast<int>(std::min<int64_t>(wanted, blocks));
  const int part_filters = (blocks + parts - 1) / parts * kBlock;

  std::exception_ptr error;  // none may leave a parallel region
#pragma omp parallel for schedule(dynamic)
  for (int64_t t = 0; t < images * parts; ++t) {
    const int64_t n = t / parts / conv.groups, g = t / parts % conv.groups;
    const int first = static_cast<int>(t % parts) * part_filters;
    const int filters = std::min(part_filters, conv.group_filters - first);
    if (filters <= 0) continue;
    const auto& [sn, sc, sh, sw] = input.stride;
    const auto& [dn, dc, dh, dw] = grad_output.stride;
    const int64_t o = g * conv.group_filters + first;
    try {
      route({static_cast<const T*>(input.data) + n * sn + g * conv.group_channels * sc,
             static_cast<const T*>(grad_output.data) + n * dn + o * dc,
             {sc, sh, sw},
             {dc, dh, dw},
             conv,
             filters,
             out + n * conv.groups * conv.group_filters + o});
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace

template <class T>
void filter_grad_sq_direct(Array4 input, Array4 grad_output, const Conv& conv, T* out) {
  run(routes<T>().direct, input, grad_output, conv, out);
}

template <class T>
void filter_grad_sq_winograd(Array4 input, Array4 grad_output, const Conv& conv, T* out) {
  run(routes<T>().winograd, input, grad_output, conv, out);
}

template <class T>
void filter_grad_sq_shifted_gram(Array4 input, Array4 grad_output, const Conv& conv, T* out) {
  run(routes<T>().shifted_gram, input, grad_output, conv, out);
}

template void filter_grad_sq_direct(Array4, Array4, const Conv&, float*);
template void filter_grad_sq_direct(Array4, Array4, const Conv&, double*);
template void filter_grad_sq_winograd(Array4, Array4, const Conv&, float*);
template void filter_grad_sq_winograd(Array4, Array4, const Conv&, double*);
template void filter_grad_sq_shifted_gram(Array4, Array4, const Conv&, float*);
template void filter_grad_sq_shifted_gram(Array4, Array4, const Conv&, double*);

}  // namespace task2vec
