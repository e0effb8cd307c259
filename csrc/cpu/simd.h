// The vector type of the loops: as many lanes as the target's registers hold.
//
// GCC's and Clang's vector extensions give arithmetic, comparison and selection on every
// target, so the loops are written once. Only the branch "is any lane below?" is spelled per
// target. -ffp-contract=fast (set in CMakeLists.txt) turns a * b + c into one FMA where the
// target has it; nothing here relies on that for correctness.

#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Scalar;
};

template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Scalar;
};

template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
using Int = typename Simd<T>::Int;
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
inline __attribute__((always_inline)) Vec<T> load(const T* from) {
  Vec<T> v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline __attribute__((always_inline)) void store(T* to, Vec<T> v) {
  memcpy(to, &v, sizeof v);
}

template <class T>
inline __attribute__((always_inline)) Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// from[0], from[step], from[2 * step], .. where kLanes steps are far below 2^31.
template <class T>
inline __attribute__((always_inline)) Vec<T> load_strided(const T* from, int step) {
#if defined(__AVX512F__)
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(step));
  if constexpr (sizeof(T) == 4)
    return Vec<T>(_mm512_i32gather_ps(at, from, 4));
  else
    return Vec<T>(_mm512_i32gather_pd(_mm512_castsi512_si256(at), from, 8));
#else
  Vec<T> v;
  for (int l = 0; l < kLanes<T>; ++l) v[l] = from[l * step];
  return v;
#endif
}

// NaN in a gives b.
template <class V>
inline __attribute__((always_inline)) V vmin(V a, V b) {
  return a < b ? a : b;
}

template <class T>
inline __attribute__((always_inline)) bool any(Int<T> mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  typename Simd<T>::Scalar seen = 0;
  for (int l = 0; l < kLanes<T>; ++l) seen |= mask[l];
  return seen != 0;
#endif
}

// Whether all of N vectors are below the limit in every lane; NaN is not.
template <class T, int N>
inline __attribute__((always_inline)) bool all_below(const Vec<T>* a, Vec<T> limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    __mmask16 below = 0xffff;
    for (int i = 0; i < N; ++i)
      below = _mm512_mask_cmp_ps_mask(below, __m512(a[i]), __m512(limit), _CMP_LT_OQ);
    return below == 0xffff;
  } else {
    __mmask8 below = 0xff;
    for (int i = 0; i < N; ++i)
      below = _mm512_mask_cmp_pd_mask(below, __m512d(a[i]), __m512d(limit), _CMP_LT_OQ);
    return below == 0xff;
  }
#else
  Int<T> below = a[0] < limit;
  for (int i = 1; i < N; ++i) below &= a[i] < limit;
  return !any<T>(~below);
#endif
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
