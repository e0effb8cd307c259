// A running sum of exponentials that neither overflows nor underflows.
//
// The pair (offset, sum) stands for sum * 2^(-offset). In the mixture kernel the offset is a scaled
// squared distance, the smallest one met so far up to a slack; in path importance it is minus the
// largest log-weight. Either way the sum stays in range.

#pragma once
#include <math.h>

#if !defined(NOISYFLOW_TARGET)
#define NOISYFLOW_TARGET generic
#endif

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {  // one copy per CPU target: the linker must never share them

// Nothing added yet: (inf, 0). merge() is associative and commutative up to rounding.
struct LogSum {
  double offset = INFINITY;
  double sum = 0;

  // Lowers the offset to `target`, keeping the value. A sum without any term keeps nothing.
  void rebase(double target) {
    sum = offset == INFINITY ? 0 : sum * exp2(target - offset);
    offset = target;
  }

  void merge(LogSum other) {
    if (other.offset == INFINITY) return;  // empty: inf - inf below would be NaN
    if (other.offset < offset) rebase(other.offset);
    sum += other.sum * exp2(offset - other.offset);
  }

  double log2_value() const { return offset == INFINITY ? -INFINITY : log2(sum) - offset; }
};

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
