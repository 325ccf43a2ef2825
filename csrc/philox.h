// Normal numbers that are a function of (seed, stream, step, index): the same on the CPU and on a GPU, in any order and
// as often as one likes. The uniform numbers behind them agree in every bit, the normal ones to rounding.
//
// In an unnamed namespace because files that are compiled once per instruction set include it (cpu/simd.h says why).
#pragma once
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace task2vec {
namespace {

struct Words {
  uint32_t word[4];
};

// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
TASK2VEC_INLINE Words philox(uint64_t key, Words counter) {
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  auto [c0, c1, c2, c3] = counter.word;
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53} * c0, right = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(right);
    c2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(left);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

template <class To, class From>
TASK2VEC_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

constexpr float kTwoToMinus32 = 1.f / 4294967296.f;

// −2 ln u, u = (word + ½)·2⁻³²: ln u = k·ln 2 + ln(1 + f), f in [√½ − 1, √2 − 1].
TASK2VEC_INLINE float minus_two_log(uint32_t word) {
  const bool high = word > 0xB504F333;  // √½: near 1 the distance to 1 has the digits that count
  const float x = static_cast<float>(high ? ~word : word) + 0.5f;
  const int exponent = (bit_cast<int32_t>(x) - 0x3F3504F3) >> 23;  // of x/√½
  const float mantissa = bit_cast<float>(bit_cast<int32_t>(x) - exponent * (1 << 23));
  const float f = high ? -x * kTwoToMinus32 : mantissa - 1.f;
  const float k = high ? 0.f : static_cast<float>(exponent - 32);
  // (−2 ln(1 + f) + 2f)/f², minimax: 4e-9 of the result.
  float p = 0.156466097f;
  p = p * f - 0.260096163f;
  p = p * f + 0.264176250f;
  p = p * f - 0.283269465f;
  p = p * f + 0.332222968f;
  p = p * f - 0.400060296f;
  p = p * f + 0.500030458f;
  p = p * f - 0.666666150f;
  p = p * f + 0.999999762f;
  return k * -1.38629436f + (p * f * f - 2.f * f);
}

// Of a number that is not tiny: off by up to 2^-22 of the root on a GPU, where that is two instructions.
TASK2VEC_INLINE float square_root(float value) {
#ifdef __CUDA_ARCH__
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(value));
  return root;
#else
  return sqrtf(value);
#endif
}

// Box and Muller: two independent standard normal numbers from two words, r·cos θ and r·sin θ with r² = −2 ln u of the
// first word and θ = 2π·2⁻³² times the second.
TASK2VEC_INLINE void normal_pair(uint32_t first, uint32_t second, float& cosine, float& sine) {
  const float r = square_root(minus_two_log(first));
  // Quarter turns, and what is left: exact in integers, t in [−½, ½).
  const uint32_t quarter = second + (1u << 29);
  const float t = static_cast<float>(static_cast<int32_t>((quarter & 0x3FFFFFFF) - (1u << 29))) * (4.f * kTwoToMinus32);
  const float z = t * t;
  // sin(πt/2)/t and cos(πt/2), minimax: 5e-9 and 5e-11.
  const float s = (((-0.00460217707f * z + 0.0796802267f) * z - 0.64596349f) * z + 1.57079637f) * t;
  const float c = (((0.000903631677f * z - 0.0208600722f) * z + 0.253669202f) * z - 1.23370051f) * z + 1.f;
  const bool swap = quarter & (1u << 30);
  const uint32_t minus_cosine = (quarter ^ (quarter << 1)) & (1u << 31), minus_sine = quarter & (1u << 31);
  cosine = r * bit_cast<float>(bit_cast<uint32_t>(swap ? s : c) ^ minus_cosine);
  sine = r * bit_cast<float>(bit_cast<uint32_t>(swap ? c : s) ^ minus_sine);
}

TASK2VEC_INLINE void normal_pair(uint32_t first, uint32_t second, double& cosine, double& sine) {
  constexpr double kUnit = 1. / 4294967296., kTurn = 6.283185307179586;
  const double r = sqrt(-2 * log((first + 0.5) * kUnit)), angle = kTurn * kUnit * second;
  cosine = r * cos(angle);
  sine = r * sin(angle);
}

// Four independent numbers of a stream: those of block `block` (kernels.h says which outputs they are for).
template <class T>
TASK2VEC_INLINE void normals(const NoiseKey& key, uint32_t low, uint32_t high, T& n0, T& n1, T& n2, T& n3) {
  const Words random = philox(key.seed, {{low, high, key.step, key.stream}});
  normal_pair(random.word[0], random.word[1], n0, n1);
  normal_pair(random.word[2], random.word[3], n2, n3);
}

}  // namespace
}  // namespace task2vec
