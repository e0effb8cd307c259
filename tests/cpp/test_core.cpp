// LogSum's laws and the errors of exp2 and log, without Python. Prints what failed and returns 1.
// Compiled by tests/test_cpp.py once for every CPU target.

#include <math.h>
#include <stdio.h>

#include <initializer_list>

#include "../../csrc/core/exp2_poly.h"
#include "../../csrc/core/log_poly.h"
#include "../../csrc/core/log_sum.h"

using namespace noisyflow;

static int failures = 0;

static void check(bool condition, const char* claim, double seen) {
  if (condition) return;
  printf("FAILED: %s (seen %.3g)\n", claim, seen);
  ++failures;
}

template <class T>
static double worst_exp2_error(double from, double to) {
  const T scale = T(0.7);  // not a power of two: the product is rounded too
  double worst = 0;
  const int steps = 400000;
  for (int i = 0; i < steps; ++i) {
    Vec<T> s, acc = Vec<T>{};
    for (int l = 0; l < kLanes<T>; ++l)
      s[l] = T((from + (to - from) * (i + 0.1 * l) / steps) / double(scale));
    add_exp2<T, 1, 1>(&s, scale, &acc);
    for (int l = 0; l < kLanes<T>; ++l) {
      const double exact = exp2(-double(scale) * double(s[l]));
      const double error = fabs(double(acc[l]) / exact - 1);
      worst = error > worst ? error : worst;
    }
  }
  return worst;
}

// Of log(center * e^t), |t| <= reach.
static double worst_log_error(double center, double reach) {
  double worst = 0;
  const int steps = 200000;
  for (int i = 0; i < steps; ++i) {
    Vec<double> x;
    for (int l = 0; l < kLanes<double>; ++l)
      x[l] = center * exp(reach * (2.0 * (i + 0.1 * l) / steps - 1));
    const Vec<double> ours = log_poly(x);
    for (int l = 0; l < kLanes<double>; ++l) {
      const long double exact = logl(x[l]);  // 64 bits: 11 more than ours
      const double error = x[l] == 1 ? fabs(ours[l]) : double(fabsl(ours[l] / exact - 1));
      worst = error > worst ? error : worst;
    }
  }
  return worst;
}

int main() {
  const FlushDenormals flush;
  for (double reach : {1e-12, 1e-6, 0.5, 40.0, 700.0}) {
    const double error = worst_log_error(1, reach);
    check(error <= 2.3e-16, "log: relative error at most 2.3e-16", error);
  }
  Vec<double> edges = Vec<double>{} + INFINITY;
  check(log_poly(edges)[0] == INFINITY, "log of infinity", log_poly(edges)[0]);
  check(log_poly(edges * 0.0)[0] != log_poly(edges * 0.0)[0], "log of NaN", 0);
  check(log_poly(Vec<double>{})[0] == -INFINITY, "log of 0", log_poly(Vec<double>{})[0]);

  // Near the offset, where terms matter, the argument's own rounding does not count yet.
  const double near_f32 = worst_exp2_error<float>(-1, 1);
  check(near_f32 <= 2.7e-7, "exp2 in float near 0: relative error at most 2.7e-7", near_f32);
  const double near_f64 = worst_exp2_error<double>(-1, 1);
  check(near_f64 <= 5e-16, "exp2 in double near 0: relative error at most 5e-16", near_f64);
  // Elsewhere: plus the rounding of scale * s where there is no FMA, |scale s| log(2) eps / 2.
  const double far_f32 = worst_exp2_error<float>(-40, 124);
  check(far_f32 <= 2.7e-7 + 124 * 0.6931 * 5.97e-8, "exp2 in float, whole range", far_f32);
  const double far_f64 = worst_exp2_error<double>(-40, 1000);
  check(far_f64 <= 5e-16 + 1000 * 0.6931 * 1.12e-16, "exp2 in double, whole range", far_f64);

  LogSum empty, a{3, 2}, b{700, 1.5}, c{-2000, 0.25};
  check(empty.log2_value() == -INFINITY, "an empty sum is 0", empty.log2_value());
  LogSum merged = empty;
  merged.merge(empty);
  check(merged.log2_value() == -INFINITY, "empty + empty is empty", merged.log2_value());
  merged.merge(a);
  check(merged.log2_value() == a.log2_value(), "empty + a is a", merged.log2_value());
  LogSum left = a, right = b, other = c;
  left.merge(b);
  left.merge(c);
  other.merge(right);
  other.merge(a);
  check(fabs(left.log2_value() - other.log2_value()) < 1e-12,
        "merge is associative and commutative", left.log2_value() - other.log2_value());
  check(fabs(left.log2_value() - (2000 + log2(0.25))) < 1e-12, "the largest term wins",
        left.log2_value());
  return failures ? 1 : 0;
}
