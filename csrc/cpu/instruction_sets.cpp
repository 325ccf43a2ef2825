// Compiled for any processor: finds out which one it is.
#include "cpu/instruction_sets.h"

#include <atomic>
#include <stdexcept>

namespace task2vec {
namespace {

#define TASK2VEC_ENTRY(isa)                                                                                 \
  InstructionSet {                                                                                          \
    #isa, {isa::direct, isa::winograd, isa::shifted_gram}, {isa::direct, isa::winograd, isa::shifted_gram}, \
        isa::ratio_sums, isa::exact_sums,                                                                   \
        {isa::local_noise, isa::local_noise_backward, isa::weight_noise, isa::weight_noise_backward}, {     \
      isa::local_noise, isa::local_noise_backward, isa::weight_noise, isa::weight_noise_backward            \
    }                                                                                                       \
  }

// Those this processor has, best first.
const std::vector<InstructionSet>& supported() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found;
#ifdef TASK2VEC_X86
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v4) found.push_back(TASK2VEC_ENTRY(avx512));
    if (v3) found.push_back(TASK2VEC_ENTRY(avx2));
#endif
    found.push_back(TASK2VEC_ENTRY(baseline));
    return found;
  }();
  return sets;
}

std::atomic<const InstructionSet*> chosen{nullptr};

}  // namespace

const InstructionSet& instruction_set() {
  const InstructionSet* set = chosen;
  return set ? *set : supported().front();
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : supported()) names.push_back(set.name);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const InstructionSet& set : supported())
    if (set.name == name) {
      chosen = &set;
      return;
    }
  throw std::invalid_argument("task2vec_ext: this processor has no instruction set called " + name);
}

}  // namespace task2vec
