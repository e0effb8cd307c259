// 2^-x over vector lanes: relative error at most 2.7e-7 (float) and 5e-16 (double) for |x| <= 1,
// where terms matter; beyond, plus the rounding of x itself. tests/cpp/test_core.cpp measures it.
//
// The integer part of -x becomes the exponent, a minimax polynomial (Remez, relative error 7.5e-8
// at degree 5, 3.1e-18 at degree 11) supplies 2^f for the rest f. In float the error is that
// plus the rounding of the leading coefficient, 4.8e-8, of the last Horner step, 6.0e-8 (8.1e-8
// without FMA), and of f, 4.1e-8.

#pragma once
#include "../cpu/simd.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

template <class T>
struct Exp2;

// p[i] = the polynomial at f[i], for N vectors side by side.
template <class T, int N>
inline __attribute__((always_inline)) void horner(const Vec<T>* f, Vec<T>* p) {
  using E = Exp2<T>;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) p[i] = f[i] * E::kPoly[E::kDegree] + E::kPoly[E::kDegree - 1];
#pragma GCC unroll 16
  for (int k = E::kDegree - 2; k >= 0; --k)
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) p[i] = p[i] * f[i] + E::kPoly[k];
}

#if defined(__AVX512F__)

constexpr bool kExp2Overflows = true;  // too large a result is infinite

// f = -x - floor(-x) in [0, 1) and the scaling by 2^floor(-x) are one instruction each, at full
// rate and with the right limits: 9 instructions in all. Needs FlushDenormals.
template <>
struct Exp2<float> {
  static constexpr int kDegree = 5;
  static constexpr float kPoly[kDegree + 1] = {0.999999925064f,   0.693153073203f,
                                               0.240153617021f,   0.0558263181162f,
                                               0.00898934002358f, 0.00187757670002f};
  static __m512 fraction(__m512 y) { return _mm512_reduce_ps(y, 1); }
  static __m512 scale(__m512 p, __m512 y) { return _mm512_scalef_ps(p, y); }
};

template <>
struct Exp2<double> {
  static constexpr int kDegree = 11;
  static constexpr double kPoly[kDegree + 1] = {1.0,
                                                0.69314718055994623460,
                                                0.24022650695905471359,
                                                0.055504108665711140550,
                                                0.0096181290987926217100,
                                                0.0013333558661575757352,
                                                0.00015403511446490552452,
                                                0.000015253190248831243385,
                                                1.3208193495747121518e-6,
                                                1.0254457379014550223e-7,
                                                6.5544571626548391491e-9,
                                                6.2724344648028895648e-10};
  static __m512d fraction(__m512d y) { return _mm512_reduce_pd(y, 1); }
  static __m512d scale(__m512d p, __m512d y) { return _mm512_scalef_pd(p, y); }
};

// Results below the smallest normal number are zeros while this lives: 2^-x reaches them, and a
// denormal costs a hundred cycles on some CPUs.
class FlushDenormals {
 public:
  FlushDenormals() { _mm_setcsr(before_ | 0x8000); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_ = _mm_getcsr();
};

// terms[i] = 2^(-scale * s[i]) for N vectors at once, stage by stage, so that the latencies of one
// vector hide behind the others. The caller keeps scale * s above -40.
template <class T, int N>
inline __attribute__((always_inline)) void exp2_terms(const Vec<T>* s, T scale, Vec<T>* terms) {
  using E = Exp2<T>;
  Vec<T> y[N], f[N], p[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    y[i] = s[i] * -scale;
    f[i] = E::fraction(y[i]);
  }
  horner<T, N>(f, p);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) terms[i] = Vec<T>(E::scale(p[i], y[i]));
}

#else

constexpr bool kExp2Overflows = false;  // it is nonsense: exponents wrap around

// Adding a magic number leaves the nearest integer k in the low mantissa bits, already biased, so
// one shift makes 2^k; f is in [-1/2, 1/2]. Nothing denormal arises: x is clamped.
struct FlushDenormals {
  FlushDenormals() {}
};

template <>
struct Exp2<float> {
  static constexpr float kMagic = 12582912.f + 127.f;  // 1.5 * 2^23, plus the exponent bias
  static constexpr float kClamp = 125.f;               // 2^-125 is still a normal number
  static constexpr int kShift = 23;
  static constexpr int kDegree = 5;
  static constexpr float kPoly[kDegree + 1] = {1.00000007165f, 0.693146967065f,
                                               0.24022119724f, 0.0555071327288f,
                                               0.00967554130f, 0.00132764721678f};
};

template <>
struct Exp2<double> {
  static constexpr double kMagic = 6755399441055744.0 + 1023.0;  // 1.5 * 2^52, plus the bias
  static constexpr double kClamp = 1020.0;
  static constexpr int kShift = 52;
  static constexpr int kDegree = 11;
  static constexpr double kPoly[kDegree + 1] = {1.0,
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

template <class T, int N>
inline __attribute__((always_inline)) void exp2_terms(const Vec<T>* s, T scale, Vec<T>* terms) {
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
  horner<T, N>(f, p);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    const Vec<T> power = (Vec<T>)((Int<T>)t[i] << E::kShift);
    terms[i] = power * p[i];
  }
}

#endif

// acc[i % NumAccumulators] += 2^(-scale * s[i]) for N vectors at once.
template <class T, int N, int NumAccumulators>
inline __attribute__((always_inline)) void add_exp2(const Vec<T>* s, T scale, Vec<T>* acc) {
  Vec<T> terms[N];
  exp2_terms<T, N>(s, scale, terms);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) acc[i % NumAccumulators] += terms[i];
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
