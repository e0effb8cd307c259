// The loops of the *-inl.h files, compiled with -mavx2 -mfma.
// Called only after dispatch.cpp has seen that the CPU has them.
#define NOISYFLOW_TARGET avx2
#include "covariance-inl.h"
#include "gradients-inl.h"
#include "log_density-inl.h"
#include "path_importance-inl.h"
#include "path_replicas-inl.h"
#include "posterior_moments-inl.h"
#include "tree_log_density-inl.h"

namespace noisyflow {
KernelTable kernels_avx2() {
  return {"avx2",
          &avx2::choose_kernel<float>,
          &avx2::choose_kernel<double>,
          avx2::path_kernel(),
          avx2::replica_kernel(),
          avx2::covariance_kernel<float>(),
          avx2::covariance_kernel<double>(),
          avx2::expansion_kernel<float>(),
          avx2::expansion_kernel<double>(),
          avx2::posterior_kernel<float>(),
          avx2::posterior_kernel<double>(),
          avx2::gradient_kernel<float>(),
          avx2::gradient_kernel<double>()};
}
}  // namespace noisyflow
