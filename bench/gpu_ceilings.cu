// What a GPU can do at most, measured: copied bytes, fused multiply-adds and exponentials a second.
//
// One JSON object on standard output; every bound of bench_gpu.py is computed from these figures.
// Each kernel does one thing in independent chains, long enough that launches do not count; the
// best of several runs is kept. Built by bench/gpu.sh: nvcc -O3 -arch=native bench/gpu_ceilings.cu

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kChains = 16;  // per thread: more than latency times issue rate needs
constexpr int kSteps = 4096;
constexpr int kThreads = 256;
constexpr int kRuns = 7;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  fprintf(stderr, "gpu_ceilings: %s: %s\n", what, cudaGetErrorString(status));
  exit(1);
}

template <class T>
__global__ void fma_kernel(T* out, T factor, T addend) {
  T value[kChains];
  for (int k = 0; k < kChains; ++k) value[k] = T(threadIdx.x + k);
#pragma unroll 16
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int k = 0; k < kChains; ++k) value[k] = fma(value[k], factor, addend);
  }
  T sum = 0;
  for (int k = 0; k < kChains; ++k) sum += value[k];
  if (sum == T(-1)) out[0] = sum;  // never: but the compiler cannot know
}

__global__ void exp2_kernel(float* out, float start) {
  float value[kChains];
  for (int k = 0; k < kChains; ++k) value[k] = start + k;
#pragma unroll 16
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int k = 0; k < kChains; ++k) {
      asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(value[k]));
    }
  }
  float sum = 0;
  for (int k = 0; k < kChains; ++k) sum += value[k];
  if (sum == -1.0f) out[0] = sum;
}

__global__ void copy_kernel(float4* out, const float4* in, size_t count) {
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    out[i] = in[i];
  }
}

// Seconds of the fastest of several runs, after two that do not count.
template <class Launch>
double best_seconds(Launch launch) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "an event");
  check(cudaEventCreate(&end), "an event");
  double best = 1e30;
  for (int run = -2; run < kRuns; ++run) {
    check(cudaEventRecord(begin), "an event");
    launch();
    check(cudaGetLastError(), "a launch");
    check(cudaEventRecord(end), "an event");
    check(cudaEventSynchronize(end), "a kernel");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "an event");
    if (run >= 0 && milliseconds * 1e-3 < best) best = milliseconds * 1e-3;
  }
  return best;
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "no GPU");
  int clock_khz = 0;
  check(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0), "the clock's rate");
  const int blocks = device.multiProcessorCount * 8;
  const double work = double(blocks) * kThreads * kChains * kSteps;

  void* memory = nullptr;
  const size_t bytes = size_t(1) << 30;
  check(cudaMalloc(&memory, 2 * bytes), "2 GiB of memory");
  check(cudaMemset(memory, 0, 2 * bytes), "memory");
  float* out = static_cast<float*>(memory);
  double* out64 = static_cast<double*>(memory);
  const float4* source = static_cast<const float4*>(memory);
  float4* target = static_cast<float4*>(memory) + bytes / sizeof(float4);

  const double copy = best_seconds(
      [&] { copy_kernel<<<blocks, kThreads>>>(target, source, bytes / sizeof(float4)); });
  const double fma32 =
      best_seconds([&] { fma_kernel<float><<<blocks, kThreads>>>(out, 0.999f, 0.5f); });
  const double fma64 =
      best_seconds([&] { fma_kernel<double><<<blocks, kThreads>>>(out64, 0.999, 0.5); });
  const double exp2 = best_seconds([&] { exp2_kernel<<<blocks, kThreads>>>(out, 0.5f); });

  printf(
      "{\"device\": \"%s\", \"multiprocessors\": %d, \"clock_mhz\": %.0f, "
      "\"copied_bytes_per_second\": %.4g, \"fma_per_second\": %.4g, "
      "\"fma64_per_second\": %.4g, \"exp2_per_second\": %.4g}\n",
      device.name, device.multiProcessorCount, clock_khz * 1e-3, 2.0 * double(bytes) / copy,
      work / fma32, work / fma64, work / exp2);
  return 0;
}
