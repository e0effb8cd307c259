// The loops of the *-inl.h files, compiled for any CPU.
// Always there; all that a CPU without AVX2 has.
#define NOISYFLOW_TARGET baseline
#include "covariance-inl.h"
#include "gradients-inl.h"
#include "log_density-inl.h"
#include "path_importance-inl.h"
#include "path_replicas-inl.h"
#include "posterior_moments-inl.h"
#include "tree_log_density-inl.h"

namespace noisyflow {
KernelTable kernels_baseline() {
  return {"baseline",
          &baseline::choose_kernel<float>,
          &baseline::choose_kernel<double>,
          baseline::path_kernel(),
          baseline::replica_kernel(),
          baseline::covariance_kernel<float>(),
          baseline::covariance_kernel<double>(),
          baseline::expansion_kernel<float>(),
          baseline::expansion_kernel<double>(),
          baseline::posterior_kernel<float>(),
          baseline::posterior_kernel<double>(),
          baseline::gradient_kernel<float>(),
          baseline::gradient_kernel<double>()};
}
}  // namespace noisyflow
