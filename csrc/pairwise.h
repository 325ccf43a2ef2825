// d_sym from sums, the same on the CPU and on a GPU.
#pragma once
#include <cmath>

#include "kernels.h"

namespace task2vec {

TASK2VEC_BOTH inline double sym_distance(double rr, double qq, double rq) {
  const double d = 1.0 - rq / sqrt(rr * qq);
  return d < 0.0 ? 0.0 : d > 1.0 ? 1.0 : d;
}

// From Σ r and Σ r² over so many live filters; −1 where they do not say it to 1e-6.
TASK2VEC_BOTH inline double sure_distance(double r, double rr, double live) {
  const double qq = live - 2 * r + rr;
  if (!(qq >= SymFast::kLeastOther * live && rr >= SymFast::kLeastNumerator * live)) return -1.0;
  const double d = sym_distance(rr, qq, r - rr);
  return d >= SymFast::kLeastDistance ? d : -1.0;
}

// Powers of two that bring two rows, each below 2**exponent, to one scale in which sums and squares are float64. d_sym
// is at its limit long before a ratio of 2**400; 2**1000 makes rows normal that are subnormal throughout.
struct PairScale {
  double a, b;
};
TASK2VEC_BOTH inline PairScale pair_scale(int64_t exponent_a, int64_t exponent_b) {
  const auto one = [](int64_t own, int64_t other) {
    const int64_t gap = other > own ? other - own : 0;
    const int64_t scale = -own - (gap < 400 ? gap : 400);
    return ldexp(1.0, static_cast<int>(scale < 1000 ? scale : 1000));
  };
  return {one(exponent_a, exponent_b), one(exponent_b, exponent_a)};
}

}  // namespace task2vec
