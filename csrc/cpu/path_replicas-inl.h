// Replicas of the noise path: log p(t_l | x) of a known noisy network, from both sides.
//
// The plain average of phi(t_l - S_l(x, z_k)) over draws z_k of the noise, without and with the
// path that made t_l. Where units saturate, the posterior of the noise has many modes, or none that
// a linearisation finds (path_importance-inl.h), but S_l takes few distinct values: hundreds of
// draws find them all, and a draw costs one forward pass.
//
// One lane = one draw for one point; everything in double.

#pragma once
#include <math.h>

#include "path_importance-inl.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

// Half the squared distances of y to S_l over draws, smallest first at `least`; then their sums.
struct ReplicaSums {
  double least, sum, squares;

  ReplicaSums(const VecD* halves, int64_t num_vectors) {
    VecD low = broadcast<double>(INFINITY);
    for (int64_t v = 0; v < num_vectors; ++v) low = vmin(halves[v], low);
    least = INFINITY;
    for (int l = 0; l < kPairLanes; ++l) least = low[l] < least ? low[l] : least;
    VecD total = VecD{}, total_squares = VecD{};
    for (int64_t v = 0; v < num_vectors; ++v) {
      const VecD w = exp_minus(halves[v] - least);
      total += w;
      total_squares += w * w;
    }
    sum = squares = 0;
    for (int l = 0; l < kPairLanes; ++l) {
      sum += total[l];
      squares += total_squares[l];
    }
  }
};

inline int64_t replica_vectors(const ReplicaTask& task) {
  return (task.num_draws + kPairLanes - 1) / kPairLanes;
}

inline void replica_chunk(const ReplicaTask& task, int64_t first, int64_t last, void* memory) {
  const FlushDenormals flush;
  Arena arena{reinterpret_cast<uintptr_t>(memory)};
  PairVector pair;
  pair.allocate(task.layers, arena);
  const int64_t num_vectors = replica_vectors(task), K = task.num_draws, P = task.num_columns;
  VecD* halves = arena.take<VecD>(num_vectors);
  double* half = reinterpret_cast<double*>(halves);

  // Half the squared distance at pair.z, and beyond `count` lanes none.
  auto evaluate = [&](int64_t count) {
    pair.forward(pair.z);
    VecD misfit = VecD{};
    for (int c = 0; c < pair.d; ++c) misfit += pair.residual[c] * pair.residual[c];
    misfit *= 0.5;
    for (int64_t l = count; l < kPairLanes; ++l) misfit[l] = INFINITY;
    return misfit;
  };
  for (int64_t i = first; i < last; ++i) {
    const int64_t d1 = task.layers.dims[0];
    for (int64_t c = 0; c < d1; ++c)
      pair.first[c] = broadcast<double>(task.layers.first[task.own[i] * d1 + c]);
    for (int c = 0; c < pair.d; ++c) pair.y[c] = broadcast<double>(task.points[i * pair.d + c]);
    const double* columns = task.normals + task.offsets[i];
    for (int64_t v = 0; v < num_vectors; ++v) {
      const int64_t at = v * kPairLanes;
      const int64_t count = K - at < kPairLanes ? K - at : kPairLanes;
      if (count == kPairLanes) {
        for (int k = 0; k < pair.L; ++k) pair.z[k] = load<double>(columns + k * P + at);
      } else {
        for (int k = 0; k < pair.L; ++k)
          for (int64_t l = 0; l < kPairLanes; ++l)
            pair.z[k][l] = columns[k * P + at + (l < count ? l : 0)];
      }
      halves[v] = evaluate(count);
    }
    const double normaliser =
        log(double(K)) +
        0.5 * pair.d * log(2 * M_PI * task.layers.noise_std * task.layers.noise_std);
    const ReplicaSums without(halves, num_vectors);
    task.lower[i] = log(without.sum) - without.least - normaliser;
    task.effective[i] = without.sum * without.sum / (without.squares * double(K));

    // The path that made y takes the place of the last draw; all draws are alike.
    for (int k = 0; k < pair.L; ++k) pair.z[k] = broadcast<double>(task.path[i * pair.L + k]);
    half[K - 1] = evaluate(1)[0];
    const ReplicaSums with(halves, num_vectors);
    task.upper[i] = log(with.sum) - with.least - normaliser;
  }
}

inline ReplicaKernel replica_kernel() {
  return {[](const ReplicaTask& task) {
            Arena arena{0};
            PairVector pair;
            pair.allocate(task.layers, arena);
            arena.take<VecD>(replica_vectors(task));
            return arena.used;
          },
          &replica_chunk};
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
