// CUDA kernels on the host: their own source, compiled by the host compiler with this header in the
// place of CUDA's. A launch runs block after block. Within a block every CUDA thread is a fibre, or
// with -DSHIM_THREADS a std::thread, for ThreadSanitizer.
//
// What a kernel may use is here and nothing else. Checked while it runs, and reported as the error
// of the launch: a barrier or warp operation at which the threads that must meet do not (all of the
// block or mask that have not returned, at the same line), and a launch that no device would take.
// Dynamic shared memory holds NaN when a block begins, and is exactly as large as asked for, for
// AddressSanitizer. Not modelled: blocks that run side by side, the memory model beyond barriers,
// registers, and static shared memory that a block inherits from the one before.

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __noinline__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

#define CUDART_VERSION 13000

using std::max;
using std::min;

// -- vector types --------------------------------------------------------------------

#define SHIM_VECTORS(scalar, name, bytes2, bytes4)                                  \
  struct __attribute__((aligned(bytes2))) name##2 { scalar x, y; };                 \
  struct name##3 { scalar x, y, z; };                                               \
  struct __attribute__((aligned(bytes4))) name##4 { scalar x, y, z, w; };           \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }              \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
// clang-format off
SHIM_VECTORS(float, float, 8, 16)
SHIM_VECTORS(double, double, 16, 16)
SHIM_VECTORS(int, int, 8, 16)
SHIM_VECTORS(unsigned, uint, 8, 16)
SHIM_VECTORS(long long, longlong, 16, 16)
// clang-format on
#undef SHIM_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// -- threads -------------------------------------------------------------------------

namespace shim {

// Where a thread stands in its source; what a barrier compares.
struct Site {
  const char* file;
  int line;
};

struct Position {
  uint3 thread;
  uint3 block;
  dim3 block_size;
  dim3 grid_size;
};

const Position& position();
void* dynamic_shared();

// All threads of the block, or all lanes of the mask, hand over a record; the last to arrive runs
// `run` over the records (null where a thread has returned), then all go on.
using Collective = void (*)(void* const* records, unsigned count);
void meet_in_block(Site site, void* record, Collective run);
void meet_in_warp(Site site, unsigned mask, void* record, Collective run);

// The threads of a warp are numbered by their lane in `mask`.
unsigned lane();

template <class T>
struct Shuffle {
  T value;
  unsigned source;
  T result;
};

template <class T>
T shuffle(Site site, unsigned mask, T value, unsigned source) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "one register or two");
  Shuffle<T> own{value, source & 31, value};
  meet_in_warp(site, mask, &own, [](void* const* records, unsigned count) {
    for (unsigned l = 0; l < count; ++l) {
      auto* reader = static_cast<Shuffle<T>*>(records[l]);
      if (reader == nullptr) continue;
      // From a lane outside the mask the hardware returns anything: all bits set, NaN for floats.
      const auto* from = static_cast<Shuffle<T>*>(records[reader->source]);
      if (from != nullptr) {
        reader->result = from->value;
      } else {
        memset(&reader->result, 0xff, sizeof(T));
      }
    }
  });
  return own.result;
}

template <class T>
T shuffle_xor(Site site, unsigned mask, T value, int lanes) {
  return shuffle(site, mask, value, lane() ^ static_cast<unsigned>(lanes));
}

template <class T>
T shuffle_down(Site site, unsigned mask, T value, unsigned lanes) {
  return shuffle(site, mask, value, lane() + lanes < 32 ? lane() + lanes : lane());
}

template <class T>
T shuffle_up(Site site, unsigned mask, T value, unsigned lanes) {
  return shuffle(site, mask, value, lane() >= lanes ? lane() - lanes : lane());
}

// fp16 as its bits.
unsigned to_half(float value);
float from_half(unsigned bits);

// mma.sync.m16n8k16, fp16 in and float32 out, of a whole warp: the fragments of a (4 registers) and
// b (2), and d, which it adds to, as the PTX ISA lays them out. Sums are rounded once, or, with
// NOISYFLOW_SHIM_MMA= truncate in the environment, as tensor cores are thought to do it: eight
// products and the sum so far, each cut off at 24 bits below the largest of them.
void multiply_add_16x8x16(float (&d)[4], const unsigned (&fragment)[6]);

unsigned ballot(Site site, unsigned mask, bool claim);
int count_in_block(Site site, bool claim);

// -- launches ------------------------------------------------------------------------

bool begin_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes);
void run_blocks(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

// Arguments are copied first, as by a launch.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*,
            Arguments... arguments) {
  if (!begin_launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes)) return;
  run_blocks(grid, block, shared_bytes, [=] { kernel(arguments...); });
}

}  // namespace shim

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::shim::launch((kernel), (grid), (block), (shared_bytes), (stream), __VA_ARGS__)
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::shim::dynamic_shared())

#define threadIdx (::shim::position().thread)
#define blockIdx (::shim::position().block)
#define blockDim (::shim::position().block_size)
#define gridDim (::shim::position().grid_size)
#define warpSize 32

// -- barriers and warp operations ----------------------------------------------------

#define SHIM_SITE (::shim::Site{__FILE__, __LINE__})
#define __syncthreads() ::shim::meet_in_block(SHIM_SITE, nullptr, nullptr)
#define __syncthreads_count(claim) ::shim::count_in_block(SHIM_SITE, (claim))
#define __syncthreads_or(claim) (::shim::count_in_block(SHIM_SITE, (claim)) != 0)
#define __syncthreads_and(claim) (::shim::count_in_block(SHIM_SITE, !(claim)) == 0)
#define SHIM_FIRST_OR_ALL(...) (__VA_ARGS__ + 0u ? __VA_ARGS__ + 0u : ~0u)
#define __syncwarp(...) \
  ::shim::meet_in_warp(SHIM_SITE, SHIM_FIRST_OR_ALL(__VA_ARGS__), nullptr, nullptr)
#define __shfl_sync(mask, value, source) ::shim::shuffle(SHIM_SITE, (mask), (value), (source))
#define __shfl_xor_sync(mask, value, lanes) ::shim::shuffle_xor(SHIM_SITE, (mask), (value), (lanes))
#define __shfl_down_sync(mask, value, lanes) \
  ::shim::shuffle_down(SHIM_SITE, (mask), (value), (lanes))
#define __shfl_up_sync(mask, value, lanes) ::shim::shuffle_up(SHIM_SITE, (mask), (value), (lanes))
#define __ballot_sync(mask, claim) ::shim::ballot(SHIM_SITE, (mask), (claim))
#define __any_sync(mask, claim) (::shim::ballot(SHIM_SITE, (mask), (claim)) != 0)
#define __all_sync(mask, claim) (::shim::ballot(SHIM_SITE, (mask), !(claim)) == 0)

inline void __threadfence() {}
inline void __threadfence_block() {}

// -- device functions ----------------------------------------------------------------

template <class T>
T __ldg(const T* address) {
  return *address;
}

template <class To, class From>
To shim_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits are kept");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}
inline float __int_as_float(int bits) { return shim_bits<float>(bits); }
inline int __float_as_int(float value) { return shim_bits<int>(value); }
inline float __uint_as_float(unsigned bits) { return shim_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return shim_bits<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return shim_bits<double>(bits); }
inline long long __double_as_longlong(double value) { return shim_bits<long long>(value); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
// Rounded on their own, never contracted: the barrier keeps the host compiler from doing so.
#define SHIM_ROUNDED(scalar, name, operation) \
  inline scalar name(scalar a, scalar b) {    \
    volatile scalar result = a operation b;   \
    return result;                            \
  }
// clang-format off
SHIM_ROUNDED(float, __fadd_rn, +)
SHIM_ROUNDED(float, __fsub_rn, -)
SHIM_ROUNDED(float, __fmul_rn, *)
SHIM_ROUNDED(double, __dadd_rn, +)
SHIM_ROUNDED(double, __dsub_rn, -)
SHIM_ROUNDED(double, __dmul_rn, *)
// clang-format on
#undef SHIM_ROUNDED
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
inline double rsqrt(double a) { return 1 / sqrt(a); }

template <class T>
T atomicAdd(T* address, T value) {
  T seen, sum;
  __atomic_load(address, &seen, __ATOMIC_RELAXED);
  do {
    sum = seen + value;
  } while (
      !__atomic_compare_exchange(address, &seen, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return seen;
}

template <class T>
T atomicMax(T* address, T value) {
  T seen;
  __atomic_load(address, &seen, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange(address, &seen, &value, false, __ATOMIC_RELAXED,
                                                    __ATOMIC_RELAXED)) {
  }
  return seen;
}

template <class T>
T atomicMin(T* address, T value) {
  T seen;
  __atomic_load(address, &seen, __ATOMIC_RELAXED);
  while (value < seen && !__atomic_compare_exchange(address, &seen, &value, false, __ATOMIC_RELAXED,
                                                    __ATOMIC_RELAXED)) {
  }
  return seen;
}

// -- runtime -------------------------------------------------------------------------

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchFailure = 719,
};
using cudaError_t = cudaError;
using cudaStream_t = void*;

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
// Of cudaErrorLaunchFailure, what a check of the last launch found.
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);

enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  size_t sharedMemPerBlock;
  size_t sharedMemPerBlockOptin;
  int major, minor;
  int multiProcessorCount;
};

// One device of compute capability 9.0; its multiprocessors are the environment's
// NOISYFLOW_SHIM_MULTIPROCESSORS, or 132. "Device" memory is the host's.
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* address, int byte, size_t bytes, cudaStream_t stream);

enum cudaMemcpyKind { cudaMemcpyDefault = 4, cudaMemcpyDeviceToDevice = 3 };
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
struct cudaFuncAttributes {
  int binaryVersion, maxThreadsPerBlock, numRegs;
};
namespace shim {
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return shim::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  *attributes = {90, 1024, 0};
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 4;
  return cudaSuccess;
}
