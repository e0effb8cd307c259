// What kernels are compiled by: nvcc, or the host compiler with tests/cuda/host_shim.h in the place
// of CUDA's headers (NOISYFLOW_HOST_SHIM). Every file of csrc/cuda includes this one and no header
// of CUDA.
//
// Two things are spelt differently by the two: a launch and the dynamic shared memory of a kernel.

#pragma once

#if defined(NOISYFLOW_HOST_SHIM)
#include "host_shim.h"
#else
#include <cuda_runtime.h>

// LAUNCH((kernel<float, 3>), grid, block, shared_bytes, stream, arguments...)
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

// In a kernel: the shared memory that its launch asked for, as `type* name`.
#define DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(shared_bytes)
#endif
