// The loops of log_density-inl.h, compiled with -mavx2 -mfma.
// Called only after dispatch.cpp has seen that the CPU has them.
#define NOISYFLOW_TARGET avx2
#include "log_density-inl.h"

namespace noisyflow {
KernelTable kernels_avx2() {
  return {"avx2", &avx2::choose_kernel<float>, &avx2::choose_kernel<double>};
}
}  // namespace noisyflow
