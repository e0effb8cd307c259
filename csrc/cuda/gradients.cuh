// Gradients of log-densities, recomputed from the saved values.

#pragma once
#include "device_math.cuh"

namespace noisyflow {
namespace cuda {

// One thread per point; slow and simple.
template <class T>
__global__ void simple_points_kernel(PointsView<T> points, MixtureView<T> mixture, double constant,
                                     const T* log_density, const T* grad_output, T* grad_points,
                                     double* noise_terms) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= points.m) return;
  const double variance = mixture.noise_std * mixture.noise_std;
  const double scale = 1.4426950408889634 / (2 * variance);
  const double offset = (double(log_density[i]) - constant) * 1.4426950408889634;
  const double g = grad_output[i];
  for (int64_t k0 = 0; k0 < mixture.d; ++k0) {
    double mass = 0, moment = 0, spread = 0;
    for (int64_t j = 0; j < mixture.n; ++j) {
      double square = 0;
      for (int64_t k = 0; k < mixture.d; ++k) {
        const double diff = double(points.points[i * points.stride + k]) -
                            double(mixture.centers[j * mixture.stride + k]);
        square += diff * diff;
      }
      const double shift = mixture.weight_shift ? double(mixture.weight_shift[j]) : 0;
      if (shift >= double(kNever<T>)) continue;
      const double q = pow2(-scale * (square + shift) - offset);
      mass += q;
      spread += q * square;
      moment += q * (double(mixture.centers[j * mixture.stride + k0]) -
                     double(points.points[i * points.stride + k0]));
    }
    if (grad_points) grad_points[i * mixture.d + k0] = T(g * moment / mass / variance);
    if (noise_terms && k0 == 0)
      noise_terms[i] = g * (spread / mass / variance - double(mixture.d)) / mixture.noise_std;
  }
}

// One thread per center; slow and simple.
template <class T>
__global__ void simple_centers_kernel(PointsView<T> points, MixtureView<T> mixture, double constant,
                                      const T* log_density, const T* grad_output, T* grad_centers,
                                      T* weight_mass) {
  const int64_t j = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (j >= mixture.n) return;
  const double variance = mixture.noise_std * mixture.noise_std;
  const double scale = 1.4426950408889634 / (2 * variance);
  const double shift = mixture.weight_shift ? double(mixture.weight_shift[j]) : 0;
  const double weight = mixture.weight_shift ? exp2(-scale * shift) : 1;
  for (int64_t k0 = 0; k0 < mixture.d; ++k0) {
    double mass = 0, moment = 0;
    for (int64_t i = 0; i < points.m; ++i) {
      double square = 0;
      for (int64_t k = 0; k < mixture.d; ++k) {
        const double diff = double(points.points[i * points.stride + k]) -
                            double(mixture.centers[j * mixture.stride + k]);
        square += diff * diff;
      }
      const double offset = (double(log_density[i]) - constant) * 1.4426950408889634;
      const double q = pow2(-scale * square - offset) * double(grad_output[i]);
      mass += q;
      moment += q * weight *
                (double(points.points[i * points.stride + k0]) -
                 double(mixture.centers[j * mixture.stride + k0]));
    }
    if (grad_centers) grad_centers[j * mixture.d + k0] = T(moment / variance);
    if (weight_mass && k0 == 0)
      weight_mass[j] = T(mass * (mixture.weight_shift ? 1 : double(mixture.n)));
  }
}

}  // namespace cuda
}  // namespace noisyflow
