// 2^-x over vector lanes, -40 <= x <= kClamp: relative error at most 2.7e-7 (float) and 5e-16
// (double) for |x| <= 1, where terms matter; beyond, without FMA, plus the rounding of x itself.
// In float: minimax 7.5e-8, rounding of the leading coefficient 4.8e-8, of the last Horner step
// 6.0e-8 (8.1e-8 without FMA), of f 4.1e-8 (without FMA). tests/cpp/test_core.cpp measures it.
//
// Adding a magic number leaves the nearest integer k in the low mantissa bits, already biased, so
// one shift makes 2^k; a minimax polynomial (Remez, relative error 7.5e-8 at degree 5, 3.1e-18 at
// degree 11) supplies 2^f for the remainder f in [-1/2, 1/2].

#pragma once
#include "../cpu/simd.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

template <class T>
struct Exp2;

template <>
struct Exp2<float> {
  static constexpr float kMagic = 12582912.f + 127.f;  // 1.5 * 2^23, plus the exponent bias
  static constexpr float kClamp = 125.f;               // 2^-125 is still a normal number
  static constexpr int kShift = 23;
  static constexpr int kDegree = 5;
  static constexpr float kPoly[kDegree + 1] = {1.00000007165f,    0.693146967065f, 0.24022119724f,
                                               0.0555071327288f, 0.00967554130f,  0.00132764721678f};
};

template <>
struct Exp2<double> {
  static constexpr double kMagic = 6755399441055744.0 + 1023.0;  // 1.5 * 2^52, plus the bias
  static constexpr double kClamp = 1020.0;
  static constexpr int kShift = 52;
  static constexpr int kDegree = 11;
  static constexpr double kPoly[kDegree + 1] = {
      1.0,
      0.69314718055994533046,
      0.24022650695910156205,
      0.055504108664819921483,
      0.0096181291075883350833,
      0.0013333558146789950323,
      0.00015403530462514613026,
      0.0000152527334899608046,
      1.3215433089594629037e-6,
      1.0178198033328527662e-7,
      7.0741056262456593708e-9,
      4.4352809446103361611e-10};
};

// acc[i % kNumAccumulators] += 2^(-scale * s[i]) for N vectors at once, stage by stage, so that
// the latencies of one vector hide behind the others. s is clamped so that 2^-kClamp is the
// smallest term; the caller keeps scale * s above -40.
template <class T, int N, int NumAccumulators>
inline __attribute__((always_inline)) void add_exp2(const Vec<T>* s, T scale, Vec<T>* acc) {
  using E = Exp2<T>;
  const T far = E::kClamp / scale;
  Vec<T> t[N], f[N], p[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    const Vec<T> near = vmin(s[i], broadcast<T>(far));
    t[i] = E::kMagic - near * scale;
    const Vec<T> minus_integer = E::kMagic - t[i];
    f[i] = minus_integer - near * scale;
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) p[i] = f[i] * E::kPoly[E::kDegree] + E::kPoly[E::kDegree - 1];
#pragma GCC unroll 16
  for (int k = E::kDegree - 2; k >= 0; --k)
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) p[i] = p[i] * f[i] + E::kPoly[k];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    const Vec<T> power = (Vec<T>)((Int<T>)t[i] << E::kShift);
    acc[i % NumAccumulators] += power * p[i];
  }
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
