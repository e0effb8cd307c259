// The loops of the *-inl.h files, compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq.
// Called only after dispatch.cpp has seen that the CPU has them.
#define NOISYFLOW_TARGET avx512
#include "covariance-inl.h"
#include "gradients-inl.h"
#include "log_density-inl.h"
#include "path_importance-inl.h"
#include "path_replicas-inl.h"
#include "posterior_moments-inl.h"
#include "tree_log_density-inl.h"

namespace noisyflow {
KernelTable kernels_avx512() {
  return {"avx512",
          &avx512::choose_kernel<float>,
          &avx512::choose_kernel<double>,
          avx512::path_kernel(),
          avx512::replica_kernel(),
          avx512::covariance_kernel<float>(),
          avx512::covariance_kernel<double>(),
          avx512::expansion_kernel<float>(),
          avx512::expansion_kernel<double>(),
          avx512::posterior_kernel<float>(),
          avx512::posterior_kernel<double>(),
          avx512::gradient_kernel<float>(),
          avx512::gradient_kernel<double>()};
}
}  // namespace noisyflow
