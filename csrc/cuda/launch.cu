// Chooses kernels, grids and scratch, and launches them.

#include <cmath>
#include <stdexcept>

#include "direct.cuh"
#include "gradients.cuh"
#include "launch.h"

namespace noisyflow {
namespace cuda {
namespace {

// -- errors --------------------------------------------------------------------------------------

[[noreturn]] void fail(const char* what, cudaError_t error) {
  std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    message += " (built for";
    for (const std::string& name : compiled_architectures()) message += " " + name;
    message += "; set NOISYFLOW_CUDA_ARCHITECTURES and build again)";
  }
  throw std::runtime_error(message);
}

void check(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // not left behind for the next caller
  fail(what, error);
}

// After a launch. Errors of the kernels themselves show at a later call, as all of CUDA's do.
void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail(kernel, error);
}

cudaStream_t to_stream(const Scratch& scratch) { return static_cast<cudaStream_t>(scratch.stream); }

constexpr int kThreads = 128;

// log of what multiplies the sum of 2^-exponents: nats.
template <class T>
double log_constant(const MixtureView<T>& mixture) {
  const double two_pi_variance = 2 * M_PI * mixture.noise_std * mixture.noise_std;
  return -0.5 * double(mixture.d) * std::log(two_pi_variance) -
         (mixture.weight_shift ? 0 : std::log(double(mixture.n)));
}

}  // namespace

// -- the machine ---------------------------------------------------------------------------------

std::vector<std::string> compiled_architectures() {
  std::vector<std::string> names;
#if defined(NOISYFLOW_CUDA_ARCHITECTURES)
  const std::string all = NOISYFLOW_CUDA_ARCHITECTURES;  // "80-real,90-real,90-virtual"
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = std::min(all.find(',', begin), all.size());
    const std::string entry = all.substr(begin, end - begin);
    const std::string number = entry.substr(0, entry.find('-'));
    if (entry.find("-virtual") == std::string::npos) names.push_back("sm_" + number);
    if (entry.find("-real") == std::string::npos) names.push_back("compute_" + number);
    begin = end + 1;
  }
#endif
  return names;
}

int toolkit_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return version;
}

int device_count() {
  int count = 0;
  check("cudaGetDeviceCount", cudaGetDeviceCount(&count));
  return count;
}

DeviceInfo device_info(int index) {
  cudaDeviceProp properties;
  check("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, index));
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount,
          int64_t(properties.totalGlobalMem)};
}

// -- launches ------------------------------------------------------------------------------------

int64_t workspace_bytes(Kind, int, int64_t, int64_t, int64_t) { return 16; }

template <class T>
void log_density(const PointsView<T>& points, const MixtureView<T>& mixture, T* out, Path,
                 const Scratch& scratch) {
  LAUNCH(simple_kernel<T>, dim3(unsigned((points.m + kThreads - 1) / kThreads)), dim3(kThreads), 0,
         to_stream(scratch), points, mixture, log_constant(mixture), nullptr, nullptr, 0, out);
  check_launch("simple_kernel");
}

template <class T>
void skipping_log_density(const PointsView<T>& points, const MixtureView<T>& mixture, double,
                          T* out, const Scratch& scratch) {
  log_density(points, mixture, out, Path::kDirect, scratch);
}

template <class T>
void block_log_sums(const PointsView<T>& points, const MixtureView<T>& mixture, const int64_t* own,
                    const Membership* membership, const Parts<T>& out, const Scratch& scratch) {
  T* const outputs[kNumParts] = {out.inner, out.outer, out.rest, out.own};
  for (int part = 0; part < kNumParts; ++part) {
    if (!outputs[part]) continue;
    LAUNCH(simple_kernel<T>, dim3(unsigned((points.m + kThreads - 1) / kThreads)), dim3(kThreads),
           0, to_stream(scratch), points, mixture, log_constant(mixture), own, membership, part,
           outputs[part]);
    check_launch("simple_kernel");
  }
}

template <class T>
void gradients(const PointsView<T>& points, const MixtureView<T>& mixture, const T* log_density,
               const T* grad_output, const Gradients<T>& out, const Scratch& scratch) {
  if (out.points || out.noise_terms) {
    LAUNCH(simple_points_kernel<T>, dim3(unsigned((points.m + kThreads - 1) / kThreads)),
           dim3(kThreads), 0, to_stream(scratch), points, mixture, log_constant(mixture),
           log_density, grad_output, out.points, out.noise_terms);
    check_launch("simple_points_kernel");
  }
  if (out.centers || out.weight_mass) {
    LAUNCH(simple_centers_kernel<T>, dim3(unsigned((mixture.n + kThreads - 1) / kThreads)),
           dim3(kThreads), 0, to_stream(scratch), points, mixture, log_constant(mixture),
           log_density, grad_output, out.centers, out.weight_mass);
    check_launch("simple_centers_kernel");
  }
}

#define NOISYFLOW_INSTANTIATE(T)                                                                 \
  template void log_density<T>(const PointsView<T>&, const MixtureView<T>&, T*, Path,            \
                               const Scratch&);                                                  \
  template void skipping_log_density<T>(const PointsView<T>&, const MixtureView<T>&, double, T*, \
                                        const Scratch&);                                         \
  template void block_log_sums<T>(const PointsView<T>&, const MixtureView<T>&, const int64_t*,   \
                                  const Membership*, const Parts<T>&, const Scratch&);           \
  template void gradients<T>(const PointsView<T>&, const MixtureView<T>&, const T*, const T*,    \
                             const Gradients<T>&, const Scratch&);
NOISYFLOW_INSTANTIATE(float)
NOISYFLOW_INSTANTIATE(double)

}  // namespace cuda
}  // namespace noisyflow
