// The plain functions that bindings may call: device pointers and a stream in, kernels launched.
//
// Nothing here allocates device memory or waits for the device: scratch is the caller's, as large
// as workspace_bytes() says. Errors become std::runtime_error with CUDA's own words and the
// kernel's name.

#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../core/views.h"

namespace noisyflow {
namespace cuda {

enum class Path { kChoose = 0, kDirect = 1, kTensor = 2 };
enum class Kind { kLogDensity, kBlockLogSums, kGradients, kSkipping };

struct DeviceInfo {
  std::string name;
  int major, minor, multiprocessors;
  int64_t total_memory;
};

struct Scratch {
  void* memory;
  int64_t bytes;
  void* stream;
};

// Log-densities of parts of the mixture, nats; outer and rest may be null.
template <class T>
struct Parts {
  T *own, *inner, *outer, *rest;
};

// Gradients wanted; null: not wanted.
template <class T>
struct Gradients {
  T* points;            // (m, d): g_i sum_j p_ij (y_j - x_i) / noise_std^2
  T* centers;           // (n, d): sum_i g_i p_ij (x_i - y_j) / noise_std^2
  T* weight_mass;       // (n,): sum_i g_i N(x_i; y_j) / exp(L_i)
  double* noise_terms;  // (m,): g_i sum_j p_ij (|x_i - y_j|^2 / noise_std^3 - d / noise_std)
};

std::vector<std::string> compiled_architectures();
int toolkit_version();
int driver_version();  // 0: no driver
int device_count();
DeviceInfo device_info(int index);

// Scratch for a call, in bytes.
int64_t workspace_bytes(Kind kind, int itemsize, int64_t m, int64_t n, int64_t d);

// Path::kTensor is tried for float and d > 20; blocks of points for which it is not good enough
// are evaluated in differences.
template <class T>
void log_density(const PointsView<T>& points, const MixtureView<T>& mixture, T* out, Path path,
                 const Scratch& scratch);

// A bound of the error of an exponent on the tensor path, nats, where the largest squared distance
// of a point or center from the centers' mean is `largest` 2 noise_std^2. Blocks are evaluated in
// differences where it is above 2e-5.
double tensor_error_bound(int64_t d, double largest);

// Points near each other one after another, and centers too: far ones are left out.
template <class T>
void skipping_log_density(const PointsView<T>& points, const MixtureView<T>& mixture,
                          double max_lost_mass, T* out, const Scratch& scratch);

// own: (m,); membership: (n,).
template <class T>
void block_log_sums(const PointsView<T>& points, const MixtureView<T>& mixture, const int64_t* own,
                    const Membership* membership, const Parts<T>& out, const Scratch& scratch);

// log_density, grad_output: (m,).
template <class T>
void gradients(const PointsView<T>& points, const MixtureView<T>& mixture, const T* log_density,
               const T* grad_output, const Gradients<T>& out, const Scratch& scratch);

}  // namespace cuda
}  // namespace noisyflow
