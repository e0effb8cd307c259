// What kernels take from the device: 2^x and operations by one name for both types. Each PTX
// instruction has a twin in C++ beside it, for the host's compiler (platform.h).

#pragma once
#include <cstdint>

#include "../core/views.h"
#include "platform.h"

namespace noisyflow {
namespace cuda {

// 2^x, relative error 2^-22 (ex2.approx: PTX ISA); 0 below 2^-126, inf above 2^128.
__device__ __forceinline__ float pow2(float x) {
#if defined(NOISYFLOW_HOST_SHIM)
  return x < -126.f ? 0.f : exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 2^x, relative error 5e-16; clamped to 2^-1020 and 2^1020. The polynomial of core/exp2_poly.h on
// [-1/2, 1/2]: a magic number leaves the nearest integer, biased, in the low bits of the mantissa.
__device__ __forceinline__ double pow2(double x) {
  constexpr double kMagic = 6755399441055744.0 + 1023.0;  // 1.5 * 2^52, plus the bias
  x = x < -1020.0 ? -1020.0 : x;                          // NaN stays NaN
  x = x > 1020.0 ? 1020.0 : x;
  const double t = x + kMagic, f = x - (t - kMagic);
  double p = 4.4352809446103361611e-10;
  p = fma(p, f, 7.0741056262456593708e-9);
  p = fma(p, f, 1.0178198033328527662e-7);
  p = fma(p, f, 1.3215433089594629037e-6);
  p = fma(p, f, 0.0000152527334899608046);
  p = fma(p, f, 0.00015403530462514613026);
  p = fma(p, f, 0.0013333558146789950323);
  p = fma(p, f, 0.0096181291075883350833);
  p = fma(p, f, 0.055504108664819921483);
  p = fma(p, f, 0.24022650695910156205);
  p = fma(p, f, 0.69314718055994533046);
  p = fma(p, f, 1.0);
  return p * __longlong_as_double(
                 static_cast<long long>(static_cast<uint64_t>(__double_as_longlong(t)) << 52));
}

__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

// a b, rounded: compilers may make one FMA of a product and what is taken from it.
__device__ __forceinline__ float rounded_product(float a, float b) {
#if defined(NOISYFLOW_HOST_SHIM)
  volatile float product = a * b;
  return product;
#else
  return __fmul_rn(a, b);
#endif
}
__device__ __forceinline__ double rounded_product(double a, double b) {
#if defined(NOISYFLOW_HOST_SHIM)
  volatile double product = a * b;
  return product;
#else
  return __dmul_rn(a, b);
#endif
}

// Of a number and NaN, the number.
__device__ __forceinline__ float smaller(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

}  // namespace cuda
}  // namespace noisyflow
