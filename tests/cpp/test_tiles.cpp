// add_tile_limited keeps its certificate and leaves out what it can, without Python. Prints what
// failed and returns 1. Compiled by tests/test_cpp.py once for every CPU target.

#define NOISYFLOW_TARGET tested
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <initializer_list>

#include "../../csrc/cpu/log_density-inl.h"

using namespace noisyflow;

static int failures = 0;

static void check(bool condition, const char* claim, int d, double seen) {
  if (condition) return;
  printf("FAILED: %s (d = %d, seen %.17g)\n", claim, d, seen);
  ++failures;
}

static double uniform() { return 2.0 * rand() / RAND_MAX - 1; }

// Sums at lanes near centers, with limits from zero to beyond every center: what was added is at
// least what lies within the limit and at most everything.
template <class T>
static void test_limits(int d, bool is_weighted) {
  constexpr int Q = 2, C = kVectorBytes == 64 ? 6 : 3, kGroup = Q * kLanes<T>, n = 100;
  const double noise_std = 0.5, rounding = 50 * d * double(kEpsilon<T>);
  const T scale = T(M_LOG2E / (2 * noise_std * noise_std));
  T* centers = new T[n * d];
  T* points = new T[kGroup * d];
  T* packed = new T[kGroup * d];
  T* chunks = new T[kGroup * num_chunks<T>(d)];
  T shift[n], limits[kGroup];
  for (int i = 0; i < n * d; ++i) centers[i] = T(uniform());
  for (int j = 0; j < n; ++j) shift[j] = T(is_weighted ? 1 + uniform() : 0);
  for (int l = 0; l < kGroup; ++l)
    for (int k = 0; k < d; ++k)
      points[l * d + k] = T(double(centers[l % 5 * d + k]) + noise_std * uniform());
  pack_points<T, Q>({points, d, kGroup}, 0, kGroup, d, packed);
  const MixtureView<T> mixture{centers, d, n, d, noise_std, is_weighted ? shift : nullptr};

  double least_share = 1;
  for (double reach = 0; reach < 4; reach += 0.125) {
    LaneSums<T, Q> sums;
    sums.clear(chunks, d);
    add_tile<T, Q, C>(packed, mixture, 0, 7, scale, sums);  // finds offsets
    for (int l = 0; l < kGroup; ++l) limits[l] = T(reach * (d / 3.0) * (1 + 0.1 * (l % 3)));
    add_tile_limited<T, Q, C>(packed, mixture, 7, n, scale, limits, sums);
    for (int l = 0; l < kGroup; ++l) {
      double within = 0, all = 0;
      for (int j = 0; j < n; ++j) {
        double distance = double(shift[j]);
        for (int k = 0; k < d; ++k) {
          const double diff = double(points[l * d + k]) - double(centers[j * d + k]);
          distance += diff * diff;
        }
        const double term = exp2(-double(scale) * (distance - sums.offset[l]));
        all += term;
        if (j < 7 || distance < double(limits[l]) * (1 - rounding)) within += term;
      }
      check(sums.sum[l] >= within * (1 - rounding), "centers within the limit are added", d,
            sums.sum[l] / within);
      check(sums.sum[l] <= all * (1 + rounding), "nothing is added twice", d, sums.sum[l] / all);
      if (reach == 0) least_share = fmin(least_share, (sums.sum[l] - within) / all);
      if (reach > 3.8)
        check(fabs(sums.sum[l] / all - 1) < rounding, "beyond all centers all are added", d,
              sums.sum[l] / all);
    }
  }
  check(fabs(least_share) < rounding, "with limit 0 nothing more is added", d, least_share);
  delete[] centers;
  delete[] points;
  delete[] packed;
  delete[] chunks;
}

// The offset is the exact sum of what the kernel subtracts, chunk by chunk, the nearest
// center is remembered, and where it is the only near one, its term is exact in the end.
template <class T>
static void test_offsets(int d) {
  constexpr int Q = 2, C = kVectorBytes == 64 ? 6 : 3, kGroup = Q * kLanes<T>, n = 40;
  const double noise_std = 0.05, scale = M_LOG2E / (2 * noise_std * noise_std);
  T* centers = new T[n * d];
  T* packed = new T[kGroup * d];
  T* rows = new T[kGroup * d];
  T* chunks = new T[kGroup * num_chunks<T>(d)];
  for (int i = 0; i < n * d; ++i) centers[i] = T(uniform());
  for (int i = 0; i < kGroup * d; ++i) packed[i] = T(uniform());
  LaneSums<T, Q> sums;
  sums.clear(chunks, d);
  const MixtureView<T> mixture{centers, d, n, d, noise_std, nullptr};
  for (int i = 0; i < kGroup * d; ++i) rows[i % kGroup * d + i / kGroup] = packed[i];
  add_tile<T, Q, C>(packed, mixture, 0, n, T(scale), sums);
  double offsets[kGroup];
  memcpy(offsets, sums.offset, sizeof offsets);
  correct_nearest<T, Q>(mixture, rows, d, kGroup, sums);
  int exact_terms = 0;
  for (int l = 0; l < kGroup; ++l) {
    long double total = 0;
    double nearest = INFINITY, second = INFINITY, named = 0;
    for (int i = 0; i < int(num_chunks<T>(d)); ++i) total += (long double)chunks[i * kGroup + l];
    for (int j = 0; j < n; ++j) {
      double distance = 0;
      for (int k = 0; k < d; ++k) {
        const double diff = double(packed[k * kGroup + l]) - double(centers[j * d + k]);
        distance += diff * diff;
      }
      second = fmin(second, fmax(nearest, distance));
      nearest = fmin(nearest, distance);
      if (j == sums.nearest[l]) named = distance;
    }
    const double off = double(total - (long double)sums.offset[l]) / sums.offset[l];
    check(fabs(off) < 3e-16, "chunks add up to the offset", d, off);  // one rounding, two by Kahan
    check(offsets[l] == sums.offset[l], "corrections leave offsets alone", d, sums.offset[l]);
    const double slack = (kSlack + 1) / scale;
    check(sums.offset[l] >= nearest * (1 - 1e-6) && sums.offset[l] <= nearest + slack,
          "the offset is near the smallest distance", d, sums.offset[l] - nearest);
    if (is_nearest_exact<T>(d))
      check(named <= nearest * (1 + 1e-5), "the nearest center is remembered", d, named - nearest);
    if (!is_nearest_exact<T>(d) || scale * (second - nearest) < 60) continue;
    const double error = log2(sums.sum[l]) - scale * (sums.offset[l] - nearest);
    // d additions in double, here.
    check(fabs(error) < d * 1.2e-16 * scale * nearest, "the only term is exact", d, error);
    ++exact_terms;
  }
  if (is_nearest_exact<T>(d))
    check(exact_terms > kGroup / 4, "some lanes have one near center", d, exact_terms);
  delete[] centers;
  delete[] packed;
  delete[] rows;
  delete[] chunks;
}

int main() {
  const FlushDenormals flush;
  for (int d : {17, 20, 32, 100}) {
    test_limits<float>(d, false);
    test_limits<float>(d, true);
    test_limits<double>(d, false);
    test_limits<double>(d, true);
    test_offsets<float>(d);
    test_offsets<double>(d);
  }
  // Chunks of 8 and 4 dimensions in float32, and a rest.
  for (int d : {130, 257, 1000, 1027, 2051}) {
    test_limits<float>(d, true);
    test_offsets<float>(d);
    test_offsets<double>(d);
  }
  return failures ? 1 : 0;
}
