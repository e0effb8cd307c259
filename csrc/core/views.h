// Plain structs that cross the borders between bindings, dispatch and the CPU targets.
// Nothing here owns memory.

#pragma once
#include <cstdint>
#include <limits>

namespace noisyflow {

// n centers of dimension d, rows `stride` elements apart, each row contiguous.
template <class T>
struct MixtureView {
  const T* centers;
  int64_t stride;
  int64_t n;
  int64_t d;
  double noise_std;
  // Per center, -log(weight) in squared distance: weight_shift[j] = -2 noise_std^2 log w_j,
  // so that a weighted center is one that is a little farther away; kNever<T> for weight zero.
  // Null: uniform weights 1/n.
  const T* weight_shift;
};

// The squared distance of a center that does not exist: far beyond any real one, yet finite, so
// that differences of two of them are never NaN.
template <class T>
constexpr T kNever = std::numeric_limits<T>::max() / 8;

// m points, rows `stride` elements apart, each row contiguous.
template <class T>
struct PointsView {
  const T* points;
  int64_t stride;
  int64_t m;
};

// Which centers belong to a point: its own, its block [inner_begin, inner_end) and the outer
// block [outer_begin, outer_end) around that. One entry per point.
struct Membership {
  int32_t own;
  int32_t inner_begin, inner_end;
  int32_t outer_begin, outer_end;
};

// The parts into which the mixture's sum at a point is split; the order of the outputs.
enum Part { kInner = 0, kOuter = 1, kRest = 2, kOwn = 3, kNumParts = 4 };

// Evaluates points [first, last). Without membership all centers count as kInner and only
// out[kInner] is written; otherwise all four are. Outputs are log-densities in nats.
template <class T>
struct Task {
  PointsView<T> points;
  MixtureView<T> mixture;
  const Membership* membership;  // null: plain log-density
  bool include_rest;             // false: skip centers outside the point's block
  T* out[kNumParts];
};

}  // namespace noisyflow
