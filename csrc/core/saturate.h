// The nearest number that a type holds.

#pragma once
#include "views.h"

#if !defined(NOISYFLOW_TARGET)
#define NOISYFLOW_TARGET generic
#endif

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {  // as in log_sum.h

// NaN stays.
template <class T>
inline double saturate(double x) {
  constexpr double kMost = double(kLargest<T>);
  return x > kMost ? kMost : x < -kMost ? -kMost : x;
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
