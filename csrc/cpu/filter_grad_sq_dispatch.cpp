// Spreads samples, groups and blocks of filters over threads, and picks the instruction set.
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "filter_grad_sq.h"

namespace task2vec {
namespace {

std::atomic<int64_t> scratch_now{0}, scratch_most{0};

template <class T>
using Route = void (*)(const CpuTask<T>&);

struct InstructionSet {
  const char* name;
  bool supported;
  struct {
    Route<float> direct, winograd, shifted_gram;
  } f32;
  struct {
    Route<double> direct, winograd, shifted_gram;
  } f64;
};

#define TASK2VEC_ROUTES(isa) {isa::direct, isa::winograd, isa::shifted_gram}
#define TASK2VEC_ISA_ENTRY(isa, supported) {#isa, supported, TASK2VEC_ROUTES(isa), TASK2VEC_ROUTES(isa)}

// Best first.
const std::vector<InstructionSet>& all_instruction_sets() {
  static const std::vector<InstructionSet> all = [] {
#ifdef TASK2VEC_X86
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return std::vector<InstructionSet>{TASK2VEC_ISA_ENTRY(avx512, v4), TASK2VEC_ISA_ENTRY(avx2, v3),
                                       TASK2VEC_ISA_ENTRY(baseline, true)};
#else
    return std::vector<InstructionSet>{TASK2VEC_ISA_ENTRY(baseline, true)};
#endif
  }();
  return all;
}

const InstructionSet* first_supported() {
  const auto& all = all_instruction_sets();
  return &*std::find_if(all.begin(), all.end(), [](const InstructionSet& isa) { return isa.supported; });
}

std::atomic<const InstructionSet*> chosen{nullptr};

template <class T>
const auto& routes() {
  const InstructionSet* isa = chosen;
  if (!isa) chosen = isa = first_supported();
  if constexpr (sizeof(T) == sizeof(float))
    return isa->f32;
  else
    return isa->f64;
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

void count_scratch(int64_t change) {
  const int64_t now = scratch_now += change;
  int64_t most = scratch_most;
  while (most < now && !scratch_most.compare_exchange_weak(most, now)) {
  }
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& isa : all_instruction_sets())
    if (isa.supported) names.push_back(isa.name);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const InstructionSet& isa : all_instruction_sets())
    if (isa.supported && isa.name == name) {
      chosen = &isa;
      return;
    }
  throw std::invalid_argument("task2vec_ext: this processor has no instruction set called " + name);
}

int64_t scratch_peak() { return scratch_most.exchange(scratch_now); }

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
