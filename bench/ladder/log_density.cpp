// The lower rungs of the CPU ladder: what the shipped kernel grew from, each a whole function.
//
// All compute the log-sum of exponents log sum_j exp(-|x_i - y_j|^2 / (2 noise_std^2)) in float, by
// direct differences; bench_ladder.py checks them, adds the constant and times them. The upper
// rungs are the package itself.

#define NOISYFLOW_TARGET ladder
#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <vector>

#include "../../csrc/core/exp2_poly.h"
#include "../../csrc/core/log_sum.h"

namespace {

using namespace noisyflow;
using Lanes = Vec<float>;
constexpr int kWidth = kLanes<float>;

// Coordinates of Q vectors of points, dimension by dimension; the last point repeats.
template <int Q>
void pack(const float* x, int64_t first, int64_t m, int64_t d, float* packed) {
  for (int64_t l = 0; l < Q * kWidth; ++l) {
    const float* row = x + std::min(first + l, m - 1) * d;
    for (int64_t k = 0; k < d; ++k) packed[k * Q * kWidth + l] = row[k];
  }
}

// Squared distances from Q vectors of points to C centers, in registers.
template <int Q, int C>
inline __attribute__((always_inline)) void distances(const float* packed, const float* y, int64_t d,
                                                     Lanes* s) {
#pragma GCC unroll 16
  for (int i = 0; i < C * Q; ++i) s[i] = Lanes{};
#pragma GCC unroll 1
  for (int64_t k = 0; k < d; ++k)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const Lanes diff = load<float>(packed + (k * Q + q) * kWidth) - y[c * d + k];
        s[c * Q + q] += diff * diff;
      }
}

// Calls block() for register blocks of Q vectors of points and C centers, tiles of 512 centers
// outside, so that they stay in L1 for 256 points; n must be a multiple of C.
template <int Q, int C, class State, class Block, class Finish>
void for_blocks(const float* x, const float* y, int64_t m, int64_t n, int64_t d, Block block,
                Finish finish) {
  constexpr int64_t kGroup = Q * kWidth, kGroups = 256 / kGroup, kTile = 512 / C * C;
  std::vector<float> packed(size_t(kGroups * kGroup * d));
  std::vector<State> states(kGroups);
  for (int64_t first = 0; first < m; first += kGroups * kGroup) {
    const int64_t groups = std::min(kGroups, (m - first + kGroup - 1) / kGroup);
    for (int64_t g = 0; g < groups; ++g) {
      pack<Q>(x, first + g * kGroup, m, d, packed.data() + g * kGroup * d);
      states[size_t(g)] = State();
    }
    for (int64_t j = 0; j < n; j += kTile)
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t i = j; i < std::min(n, j + kTile); i += C)
          block(packed.data() + g * kGroup * d, y + i * d, states[size_t(g)]);
        states[size_t(g)].fold();
      }
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t l = 0; l < kGroup && first + g * kGroup + l < m; ++l)
        finish(states[size_t(g)], l, first + g * kGroup + l);
  }
}

template <int Q>
struct Sums {
  float offset[Q * kWidth];
  float tile[Q * kWidth];
  double sum[Q * kWidth];

  Sums() {
    for (int l = 0; l < Q * kWidth; ++l) {
      offset[l] = INFINITY;
      tile[l] = 0;
      sum[l] = 0;
    }
  }

  // After a tile: a float sum of more terms would lose digits.
  void fold() {
    for (int l = 0; l < Q * kWidth; ++l) {
      sum[l] += double(tile[l]);
      tile[l] = 0;
    }
  }

  // Moves the offset of lanes that met something nearer.
  void rebase(const float* nearest, float scale) {
    for (int l = 0; l < Q * kWidth; ++l) {
      if (!(nearest[l] < offset[l])) continue;
      LogSum moved{double(scale) * double(offset[l]), sum[l] + double(tile[l])};
      moved.rebase(double(scale) * double(nearest[l]));
      offset[l] = nearest[l];
      sum[l] = moved.sum;
      tile[l] = 0;
    }
  }
};

// Distances of a register block, offsets at the nearest center so far, then `add` the exponentials.
template <int Q, int C, class Add>
void searching(const float* x, const float* y, int64_t m, int64_t n, int64_t d, float factor,
               float* out, Add add) {
  const FlushDenormals flush;
  const float scale = factor * float(M_LOG2E);
  for_blocks<Q, C, Sums<Q>>(
      x, y, m, n, d,
      [&](const float* packed, const float* centers, Sums<Q>& sums) {
        Lanes s[C * Q];
        distances<Q, C>(packed, centers, d, s);
        Lanes nearest[Q], offset[Q];
        Int<float> nearer = Int<float>{};
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          nearest[q] = s[q];
#pragma GCC unroll 16
          for (int c = 1; c < C; ++c) nearest[q] = vmin(s[c * Q + q], nearest[q]);
          offset[q] = load<float>(sums.offset + q * kWidth);
          nearer |= nearest[q] < offset[q];
        }
        if (any<float>(nearer)) {
          float least[Q * kWidth];
          for (int q = 0; q < Q; ++q) store<float>(least + q * kWidth, nearest[q]);
          sums.rebase(least, scale);
          for (int q = 0; q < Q; ++q) offset[q] = load<float>(sums.offset + q * kWidth);
        }
#pragma GCC unroll 16
        for (int i = 0; i < C * Q; ++i) s[i] -= offset[i % Q];
        Lanes tile[Q];
        for (int q = 0; q < Q; ++q) tile[q] = load<float>(sums.tile + q * kWidth);
        add(s, tile);
        for (int q = 0; q < Q; ++q) store<float>(sums.tile + q * kWidth, tile[q]);
      },
      [&](Sums<Q>& sums, int64_t l, int64_t i) {
        out[i] = float(log(sums.sum[l]) - double(factor) * double(sums.offset[l]));
      });
}

}  // namespace

extern "C" {

// Rung 1, naive: two loops and exp().
void naive(const float* x, const float* y, int64_t m, int64_t n, int64_t d, float factor,
           float* out) {
  std::vector<float> squares(static_cast<size_t>(n));
  for (int64_t i = 0; i < m; ++i) {
    float nearest = INFINITY;
    for (int64_t j = 0; j < n; ++j) {
      float s = 0;
      for (int64_t k = 0; k < d; ++k) {
        const float diff = x[i * d + k] - y[j * d + k];
        s += diff * diff;
      }
      squares[size_t(j)] = s;
      nearest = std::min(nearest, s);
    }
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += double(expf(factor * (nearest - squares[size_t(j)])));
    out[i] = float(log(sum) - double(factor) * double(nearest));
  }
}

// Rung 2, blocked: points in lanes, 2 x 6 distances in registers, centers in L1; exp() lane by
// lane.
void blocked(const float* x, const float* y, int64_t m, int64_t n, int64_t d, float factor,
             float* out) {
  searching<2, 6>(x, y, m, n, d, factor, out, [factor](const Lanes* s, Lanes* tile) {
    for (int i = 0; i < 12; ++i)
      for (int l = 0; l < kWidth; ++l) tile[i % 2][l] += expf(-factor * s[i][l]);
  });
}

// Rung 3, staged: the same blocks, 2^x by a polynomial, each stage of it for all 12 vectors.
void staged(const float* x, const float* y, int64_t m, int64_t n, int64_t d, float factor,
            float* out) {
  const float scale = factor * float(M_LOG2E);
  searching<2, 6>(x, y, m, n, d, factor, out,
                  [scale](const Lanes* s, Lanes* tile) { add_exp2<float, 12, 2>(s, scale, tile); });
}

}  // extern "C"
