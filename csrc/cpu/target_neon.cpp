// The loops of the *-inl.h files, compiled for ARM64.
// Every such CPU has NEON and its FMA: the only target there, with no baseline below it.
#define NOISYFLOW_TARGET neon
#include "covariance-inl.h"
#include "gradients-inl.h"
#include "log_density-inl.h"
#include "path_importance-inl.h"
#include "path_replicas-inl.h"
#include "posterior_moments-inl.h"
#include "tree_log_density-inl.h"

namespace noisyflow {
KernelTable kernels_neon() {
  return {"neon",
          &neon::choose_kernel<float>,
          &neon::choose_kernel<double>,
          neon::path_kernel(),
          neon::replica_kernel(),
          neon::covariance_kernel<float>(),
          neon::covariance_kernel<double>(),
          neon::expansion_kernel<float>(),
          neon::expansion_kernel<double>(),
          neon::posterior_kernel<float>(),
          neon::posterior_kernel<double>(),
          neon::gradient_kernel<float>(),
          neon::gradient_kernel<double>()};
}
}  // namespace noisyflow
