// What host_shim.h promises: threads meet at barriers and warp operations, and those that do not
// are reported. Built with fibres and with threads; the faults run with fibres alone, which can
// abandon a block.

#include <stdio.h>

#include <vector>

#include "../../csrc/cuda/platform.h"

namespace {

int failures = 0;

void check(bool claim, const char* what) {
  if (claim) return;
  printf("FAILED: %s\n", what);
  ++failures;
}

// Reverses each block's run of numbers through shared memory, with a tail that returns early.
template <int kThreads>
__global__ void reverse_kernel(const int* in, int* out, int n) {
  __shared__ int tile[kThreads];
  const int begin = static_cast<int>(blockIdx.x * blockDim.x), end = min(begin + kThreads, n);
  const int i = begin + static_cast<int>(threadIdx.x);
  if (i >= n) return;
  tile[threadIdx.x] = in[i];
  __syncthreads();
  out[i] = tile[end - 1 - i];
}

__global__ void warp_kernel(float* sums, unsigned* votes, float* neighbours) {
  const unsigned t = threadIdx.x;
  float sum = static_cast<float>(t);
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  sums[t] = sum;
  votes[t] = __ballot_sync(~0u, t % 3 == 0);
  // Half of the warp on its own.
  if (t % 32 < 16) {
    neighbours[t] = __shfl_down_sync(0xffffu, static_cast<float>(t), 1);
  } else {
    neighbours[t] = __any_sync(0xffff0000u, t % 32 == 31) ? -1.0f : 0.0f;
  }
  __syncwarp();
}

__global__ void sum_kernel(const double* in, double* out) {
  DYNAMIC_SHARED(double, partial);
  const unsigned t = threadIdx.x;
  partial[t] = in[t];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) partial[t] += partial[t + half];
  }
  if (t == 0) atomicAdd(out, partial[0]);
}

// d += a b with fragments filled as the PTX ISA's tables for m16n8k16 say, element by element:
// group = lane / 4, place = lane % 4.
__global__ void product_kernel(const float* a, const float* b, float* d) {
  const int group = static_cast<int>(threadIdx.x) / 4, place = static_cast<int>(threadIdx.x) % 4;
  unsigned halves_a[8], halves_b[4];
  for (int i = 0; i < 8; ++i) {
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    const int column = place * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    halves_a[i] = shim::to_half(a[row * 16 + column]);
  }
  for (int i = 0; i < 4; ++i) {
    const int row = place * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    halves_b[i] = shim::to_half(b[row * 8 + group]);
  }
  unsigned fragment[6];
  for (int r = 0; r < 4; ++r) fragment[r] = halves_a[2 * r] | halves_a[2 * r + 1] << 16;
  for (int r = 0; r < 2; ++r) fragment[4 + r] = halves_b[2 * r] | halves_b[2 * r + 1] << 16;
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    sums[i] = d[(i < 2 ? group : group + 8) * 8 + place * 2 + (i & 1)];
  }
  shim::multiply_add_16x8x16(sums, fragment);
  for (int i = 0; i < 4; ++i) {
    d[(i < 2 ? group : group + 8) * 8 + place * 2 + (i & 1)] = sums[i];
  }
}

void test_product() {
  std::vector<float> a(16 * 16), b(16 * 8), d(16 * 8), expected(16 * 8);
  for (int i = 0; i < 256; ++i) a[i] = static_cast<float>(i * 37 % 101 - 50);
  for (int i = 0; i < 128; ++i) b[i] = static_cast<float>(i * 53 % 97 - 48) / 4;
  for (int r = 0; r < 16; ++r) {
    for (int n = 0; n < 8; ++n) {
      d[r * 8 + n] = expected[r * 8 + n] = static_cast<float>(r - n);
      for (int k = 0; k < 16; ++k) expected[r * 8 + n] += a[r * 16 + k] * b[k * 8 + n];
    }
  }
  LAUNCH(product_kernel, 1, 32, 0, nullptr, a.data(), b.data(), d.data());
  check(d == expected, "a product of matrices, exact in these numbers");
}

void test_operations() {
  const int n = 300;
  std::vector<int> in(n), out(n, -1);
  for (int i = 0; i < n; ++i) in[i] = i;
  LAUNCH((reverse_kernel<128>), dim3(3), dim3(128), 0, nullptr, in.data(), out.data(), n);
  check(cudaGetLastError() == cudaSuccess, "a launch without fault");
  for (int i = 0; i < n; ++i) {
    const int begin = i / 128 * 128, end = min(begin + 128, n);
    check(out[i] == begin + end - 1 - i, "numbers reversed through shared memory");
  }

  std::vector<float> sums(64), neighbours(64);
  std::vector<unsigned> votes(64);
  LAUNCH(warp_kernel, 1, 64, 0, nullptr, sums.data(), votes.data(), neighbours.data());
  for (unsigned t = 0; t < 64; ++t) {
    check(sums[t] == (t < 32 ? 496.0f : 1520.0f), "a sum over a warp");
    unsigned expected = 0;
    for (unsigned l = 0; l < 32; ++l) expected |= ((t / 32 * 32 + l) % 3 == 0 ? 1u : 0u) << l;
    check(votes[t] == expected, "a ballot");
    if (t % 32 < 15) check(neighbours[t] == static_cast<float>(t + 1), "the next lane's value");
    if (t % 32 == 15) check(neighbours[t] != neighbours[t], "NaN from outside the mask");
    if (t % 32 > 15) check(neighbours[t] == -1, "any of half a warp");
  }

  const std::vector<double> ones(256, 1.0);
  double total = 0;
  LAUNCH(sum_kernel, 4, 256, 256 * sizeof(double), nullptr, ones.data(), &total);
  check(total == 1024, "a tree in dynamic shared memory");
}

#if !defined(SHIM_THREADS)

__global__ void half_kernel(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  *out = 1;
  if (threadIdx.x >= 32) __syncthreads();
}

__global__ void odd_lanes_kernel(float* out) {
  if (threadIdx.x % 2 == 1) *out = __shfl_xor_sync(~0u, 1.0f, 2);
  __syncthreads();
}

__global__ void nothing_kernel(int*) {}

__global__ void read_dynamic_kernel(float* out) {
  DYNAMIC_SHARED(float, values);
  *out = values[threadIdx.x];
}

void test_faults() {
  int out = 0;
  float value = 0;
  LAUNCH(half_kernel, 1, 64, 0, nullptr, &out);
  check(cudaPeekAtLastError() == cudaErrorLaunchFailure, "a divergent barrier fails the launch");
  check(strstr(cudaGetErrorString(cudaGetLastError()), "divergent barrier") != nullptr,
        "its words");
  check(cudaGetLastError() == cudaSuccess, "an error is reported once");

  LAUNCH(odd_lanes_kernel, 1, 32, 0, nullptr, &value);
  check(cudaGetLastError() == cudaErrorLaunchFailure, "lanes that do not meet fail the launch");

  LAUNCH(nothing_kernel, 0, 32, 0, nullptr, &out);
  check(cudaGetLastError() == cudaErrorInvalidConfiguration, "an empty grid");
  LAUNCH(nothing_kernel, 1, 1025, 0, nullptr, &out);
  check(cudaGetLastError() == cudaErrorInvalidConfiguration, "too many threads");
  LAUNCH(nothing_kernel, 1, 32, 100 << 10, nullptr, &out);
  check(cudaGetLastError() == cudaErrorInvalidValue, "more shared memory than usual");
  cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10);
  LAUNCH(nothing_kernel, 1, 32, 100 << 10, nullptr, &out);
  check(cudaGetLastError() == cudaSuccess, "more shared memory, asked for");

  LAUNCH(read_dynamic_kernel, 1, 32, 128, nullptr, &value);
  check(value != value, "dynamic shared memory begins as NaN");
}

#endif

}  // namespace

int main() {
  test_operations();
  test_product();
#if !defined(SHIM_THREADS)
  test_faults();
#endif
  return failures != 0;
}
