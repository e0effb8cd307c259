// log(x) over vector lanes of double: error at most 1 ulp, relative error at most 2.3e-16, for
// positive normal x; log(0) = -inf, infinity and NaN stay. tests/cpp/test_core.cpp measures it.
//
// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), and with s = f / (2 + f)
//     log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + R(s^2)),
// R a minimax polynomial of relative error 2^-58.45; k log(2) is added in two parts. After
// fdlibm's e_log.c (Sun Microsystems, 1993), without its branches.

#pragma once
#include "../cpu/simd.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

inline __attribute__((always_inline)) Vec<double> log_poly(Vec<double> x) {
  constexpr double kLog2High = 6.93147180369123816490e-01, kLog2Low = 1.90821492927058770002e-10;
  constexpr double kPoly[7] = {6.666666666666735130e-01, 3.999999999940941908e-01,
                               2.857142874366239149e-01, 2.222219843214978396e-01,
                               1.818357216161805012e-01, 1.531383769920937332e-01,
                               1.479819860511658591e-01};
  constexpr int64_t kSqrtHalf = 0x3fe6a09e667f3bcd, kMantissa = 0x000fffffffffffff;
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: integers in the low bits

  const Int<double> above = (Int<double>)x - kSqrtHalf;
  const Int<double> k = above >> 52;
  const Vec<double> f = (Vec<double>)((above & kMantissa) + kSqrtHalf) - 1.0;
  const Vec<double> exponent = (Vec<double>)(k + (Int<double>)(broadcast<double>(kMagic))) - kMagic;

  const Vec<double> s = f / (f + 2.0), z = s * s, half_square = f * f * 0.5;
  Vec<double> poly = broadcast<double>(kPoly[6]);
#pragma GCC unroll 8
  for (int i = 5; i >= 0; --i) poly = poly * z + kPoly[i];
  const Vec<double> correction = s * (half_square + poly * z) + exponent * kLog2Low;
  const Vec<double> value = exponent * kLog2High - ((half_square - correction) - f);

  const Vec<double> at_edge = x == 0.0 ? broadcast<double>(-INFINITY) : x;
  return ((x > 0.0) & (x < INFINITY)) ? value : at_edge;
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
