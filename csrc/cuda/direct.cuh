// Log-densities from differences of coordinates: every pair.

#pragma once
#include "device_math.cuh"

namespace noisyflow {
namespace cuda {

// One thread per row; slow and simple.
template <class T>
__global__ void simple_kernel(PointsView<T> points, MixtureView<T> mixture, double constant,
                              const int64_t* own, const Membership* membership, int part, T* out) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= points.m) return;
  const double scale = 1.4426950408889634 / (2 * mixture.noise_std * mixture.noise_std);
  int64_t begin = 0, end = mixture.n, hole_begin = 0, hole_end = 0;
  if (own) {
    const Membership block = membership[own[i]];
    if (part == kOwn) begin = own[i], end = begin + 1;
    if (part == kInner)
      begin = block.inner_begin, end = block.inner_end, hole_begin = own[i], hole_end = own[i] + 1;
    if (part == kOuter)
      begin = block.outer_begin, end = block.outer_end, hole_begin = block.inner_begin,
      hole_end = block.inner_end;
    if (part == kRest) hole_begin = block.outer_begin, hole_end = block.outer_end;
  }
  double ref = -INFINITY, sum = 0;
  for (int64_t j = begin; j < end; ++j) {
    if (j >= hole_begin && j < hole_end) continue;
    double square = mixture.weight_shift ? double(mixture.weight_shift[j]) : 0;
    if (square >= double(kNever<T>)) continue;
    for (int64_t k = 0; k < mixture.d; ++k) {
      const double diff = double(points.points[i * points.stride + k]) -
                          double(mixture.centers[j * mixture.stride + k]);
      square += diff * diff;
    }
    const double t = -scale * square;
    if (t > ref) {
      sum = sum * pow2(ref - t) + 1;
      ref = t;
    } else {
      sum += pow2(t - ref);
    }
  }
  out[i] = sum > 0 ? T((ref + log2(sum)) * 0.69314718055994530942 + constant) : T(-INFINITY);
}

}  // namespace cuda
}  // namespace noisyflow
