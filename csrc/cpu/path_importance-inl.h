// Path importance sampling: log p(t_l | inputs) of a known noisy network, from both sides.
//
// p(y | x) is an integral over the noise z of the layers before l, and p(y) one over the input
// as well. Each proposal picks an input from the linearised network, then z from the Gaussian
// around the posterior mode (Gauss-Newton), and is weighted exactly. Averages of K weights without
// and with the weight of the path that made y enclose log p(y) in expectation.
//
// One lane = one (point, input) pair; everything in double. L = total width of layers before l, J =
// d S_l / d z in units of noise_std, (d, L); G = I + J J'. The posterior's covariance
// (I + J'J)^-1 is never formed: draws and densities go through G, which is only d x d.
//
// The K proposals are strata, not i.i.d. draws (struct Strata): most take their inputs at
// systematic positions of the linearised posterior r and z from the Gaussian; some take the input
// from r flattened, where the linearisation underrates tails; some take z from the prior. Weights
// use the mixture of all strata, so their average is unbiased; the path that made y replaces one
// stratum, chosen with that stratum's share of the mixture at the path, so the upper side is exact
// too. (The extended-space density of K strata with one of them so chosen is the proposals' times
// mean weight / p(y).)

#pragma once
#include <math.h>
#include <string.h>

#include "../core/exp2_poly.h"
#include "../core/log_sum.h"
#include "../core/views.h"
#include "dispatch.h"
#include "simd.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

using VecD = Vec<double>;
constexpr int kPairLanes = kLanes<double>;
constexpr int kNewtonSteps = 6;
constexpr double kConverged = 1e-3;  // squared step, in standard deviations of the prior
constexpr int64_t kSumBlock = 64;    // inputs summed together when searching the distribution

inline VecD exp_minus(VecD x) {  // e^-x for x >= 0
  VecD sum = VecD{};
  add_exp2<double, 1, 1>(&x, M_LOG2E, &sum);
  return sum;
}

// The layer's output and its derivative with respect to the pre-activation.
inline void activate(Activation activation, VecD x, VecD* value, VecD* slope) {
  const VecD one = broadcast<double>(1.0);
  switch (activation) {
    case Activation::kLinear:
      *value = x;
      *slope = one;
      return;
    case Activation::kTanh: {
      const VecD size = x < 0.0 ? -x : x;
      const VecD e = exp_minus(2.0 * size);
      const VecD t = (1.0 - e) / (1.0 + e);
      *value = x < 0.0 ? -t : t;
      *slope = 1.0 - t * t;
      return;
    }
    case Activation::kSigmoid: {
      const VecD e = exp_minus(x < 0.0 ? -x : x);
      const VecD t = 1.0 / (1.0 + e);
      *value = x < 0.0 ? 1.0 - t : t;
      *slope = t * (1.0 - t);
      return;
    }
    case Activation::kRelu:
      *value = x < 0.0 ? VecD{} : x;
      *slope = x > 0.0 ? one : VecD{};
      return;
    case Activation::kLeakyRelu:
      *value = x < 0.0 ? kLeakySlope * x : x;
      *slope = x > 0.0 ? one : broadcast<double>(kLeakySlope);
      return;
  }
}

// Hands out vectors of one thread's scratch memory.
struct Arena {
  uintptr_t base;  // 0: only counts
  int64_t used = 0;

  template <class X>
  X* take(int64_t count) {
    X* at = reinterpret_cast<X*>(base + uintptr_t(used));
    used += (count * int64_t(sizeof(X)) + 63) / 64 * 64;
    return at;
  }
};

// kPairLanes (point, input) pairs: the network around a noise path, and the proposal for it.
struct PairVector {
  int num_layers, d, L;
  int64_t widest;  // the widest layer
  double noise_std;
  const NoisyLayersView* layers;
  VecD *first, *y;               // (dims[0]), (d): set by the caller
  VecD *slopes, *hidden, *next;  // (sum of dims), (max dim), (max dim)
  VecD *out, *residual;          // (d)
  VecD *J, *chain;               // (d, L), (2, d, max dim)
  VecD* G;  // (d, d): lower triangle, its Cholesky factor with inverse diagonal
  VecD *mean, *best, *trial, *step, *z, *along, *work;  // (L) x 5, (L), (d)
  VecD half_log_det;

  void allocate(const NoisyLayersView& view, Arena& arena) {
    layers = &view;
    num_layers = view.num_layers;
    d = int(view.dims[num_layers - 1]);
    noise_std = view.noise_std;
    L = 0;
    widest = 0;
    for (int i = 0; i < num_layers; ++i) {
      if (i < num_layers - 1) L += int(view.dims[i]);
      if (view.dims[i] > widest) widest = view.dims[i];
    }
    first = arena.take<VecD>(view.dims[0]);
    y = arena.take<VecD>(d);
    slopes = arena.take<VecD>(L + d);
    hidden = arena.take<VecD>(widest);
    next = arena.take<VecD>(widest);
    out = arena.take<VecD>(d);
    residual = arena.take<VecD>(d);
    J = arena.take<VecD>(int64_t(d) * L);
    chain = arena.take<VecD>(2 * d * widest);
    G = arena.take<VecD>(int64_t(d) * d);
    mean = arena.take<VecD>(L);
    best = arena.take<VecD>(L);
    trial = arena.take<VecD>(L);
    step = arena.take<VecD>(L);
    z = arena.take<VecD>(L);
    along = arena.take<VecD>(L);
    work = arena.take<VecD>(d);
  }

  // S_l along the noise path `noise`; also the slopes of every layer.
  void forward(const VecD* noise) {
    VecD *from = hidden, *to = next;
    const VecD* part = noise;
    for (int64_t c = 0; c < layers->dims[0]; ++c) from[c] = first[c] + noise_std * part[c];
    VecD* slope = slopes + layers->dims[0];
    for (int i = 1; i < num_layers; ++i) {
      const int64_t rows = layers->dims[i], columns = layers->dims[i - 1];
      part += columns;
      const double* w = layers->weights[i];
      for (int64_t r = 0; r < rows; ++r, w += columns) {
        VecD sum = broadcast<double>(layers->biases[i][r]);
        for (int64_t c = 0; c < columns; ++c) sum += w[c] * from[c];
        activate(layers->activation, sum, &to[r], &slope[r]);
      }
      slope += rows;
      if (i == num_layers - 1) break;
      for (int64_t r = 0; r < rows; ++r) to[r] += noise_std * part[r];
      VecD* swap = from;
      from = to;
      to = swap;
    }
    for (int i = 0; i < d; ++i) {
      out[i] = to[i];
      residual[i] = (y[i] - out[i]) / noise_std;
    }
  }

  // J at the path of the last forward(), from layer l back to layer 1.
  void jacobian() {
    const int64_t widest_block = d * widest;
    VecD *now = chain, *before = chain + widest_block;
    const VecD* slope = slopes + L;
    for (int i = 0; i < d; ++i) {  // d S_l / d (pre-activation of layer l)
      for (int j = 0; j < d; ++j) now[i * d + j] = VecD{};
      now[i * d + i] = slope[i];
    }
    int64_t column = L;
    for (int layer = num_layers - 1; layer >= 1; --layer) {
      const int64_t rows = layers->dims[layer], columns = layers->dims[layer - 1];
      column -= columns;
      slope -= columns;
      const double* w = layers->weights[layer];
      for (int i = 0; i < d; ++i)
        for (int64_t c = 0; c < columns; ++c) {
          VecD sum = VecD{};
          for (int64_t r = 0; r < rows; ++r) sum += now[i * rows + r] * w[r * columns + c];
          J[int64_t(i) * L + column + c] = sum;
          before[i * columns + c] = layer > 1 ? sum * slope[c] : sum;
        }
      VecD* swap = now;
      now = before;
      before = swap;
    }
  }

  // Cholesky factor of I + J J', diagonal stored inverted.
  void factorise() {
    half_log_det = VecD{};
    for (int i = 0; i < d; ++i)
      for (int j = 0; j <= i; ++j) {
        VecD sum = broadcast<double>(i == j ? 1.0 : 0.0);
        for (int k = 0; k < L; ++k) sum += J[int64_t(i) * L + k] * J[int64_t(j) * L + k];
        for (int k = 0; k < j; ++k) sum -= G[i * d + k] * G[j * d + k];
        if (i == j) {
          for (int l = 0; l < kPairLanes; ++l) {
            half_log_det[l] += 0.5 * log(sum[l]);
            G[i * d + i][l] = 1 / sqrt(sum[l]);
          }
        } else {
          G[i * d + j] = sum * G[j * d + j];
        }
      }
  }

  // v <- G^-1 v.
  void solve(VecD* v) const {
    for (int i = 0; i < d; ++i) {
      for (int k = 0; k < i; ++k) v[i] -= G[i * d + k] * v[k];
      v[i] *= G[i * d + i];
    }
    for (int i = d - 1; i >= 0; --i) {
      for (int k = i + 1; k < d; ++k) v[i] -= G[k * d + i] * v[k];
      v[i] *= G[i * d + i];
    }
  }

  void times_j(const VecD* x, VecD* product) const {
    for (int i = 0; i < d; ++i) {
      VecD sum = VecD{};
      for (int k = 0; k < L; ++k) sum += J[int64_t(i) * L + k] * x[k];
      product[i] = sum;
    }
  }

  // Linearises at `trial`: J and G there, the Gauss-Newton step, and the objective.
  VecD linearise_at_trial(VecD* step_there) {
    forward(trial);
    jacobian();
    factorise();
    times_j(trial, work);
    VecD objective = VecD{};
    for (int i = 0; i < d; ++i) {
      objective += residual[i] * residual[i];
      work[i] += residual[i];
    }
    solve(work);
    for (int k = 0; k < L; ++k) {
      VecD target = VecD{};
      for (int i = 0; i < d; ++i) target += J[int64_t(i) * L + k] * work[i];
      step_there[k] = target - trial[k];
      objective += trial[k] * trial[k];
    }
    return objective;
  }

  // The proposal N(mean, (I + J'J)^-1): Gauss-Newton from z = 0, a step being halved until it
  // improves. Lanes stop one by one, so no lane depends on its neighbours.
  void find_mode() {
    Int<double> converged = Int<double>{};
    VecD objective = broadcast<double>(INFINITY);
    for (int k = 0; k < L; ++k) trial[k] = best[k] = step[k] = VecD{};
    for (int iteration = 0; iteration < kNewtonSteps; ++iteration) {
      const VecD there = linearise_at_trial(along);
      const Int<double> better = ~converged & (there <= objective);
      objective = better ? there : objective;
      VecD size = VecD{};
      for (int k = 0; k < L; ++k) {
        best[k] = better ? trial[k] : best[k];
        step[k] = better ? along[k] : 0.5 * step[k];
        size += step[k] * step[k];
      }
      // A converged lane keeps its trial point, so that J stays the one of its proposal.
      converged |= better & (size < kConverged);
      for (int k = 0; k < L; ++k) {
        mean[k] = converged ? trial[k] + along[k] : best[k];
        trial[k] = converged ? trial[k] : best[k] + step[k];
      }
      if (!any<double>(~converged)) return;
    }
    for (int k = 0; k < L; ++k) trial[k] = converged ? trial[k] : best[k];
    linearise_at_trial(along);
  }

  // z <- a draw of the proposal: the posterior of a prior draw (e, u) of path and observation.
  void draw(const VecD* e, const VecD* u) {
    times_j(e, work);
    for (int i = 0; i < d; ++i) work[i] += u[i];
    solve(work);
    for (int k = 0; k < L; ++k) {
      VecD correction = VecD{};
      for (int i = 0; i < d; ++i) correction += J[int64_t(i) * L + k] * work[i];
      z[k] = mean[k] + e[k] - correction;
    }
  }

  // At z, up to the factor (2 pi)^(-L/2) common to all three: the prior, the prior times the
  // likelihood of y, and the proposal. Logarithms.
  void densities(VecD* prior, VecD* target, VecD* proposal) {
    forward(z);
    VecD squares = VecD{}, from_mean = VecD{}, misfit = VecD{};
    for (int k = 0; k < L; ++k) {
      along[k] = z[k] - mean[k];
      squares += z[k] * z[k];
      from_mean += along[k] * along[k];
    }
    times_j(along, work);
    for (int i = 0; i < d; ++i) {
      from_mean += work[i] * work[i];
      misfit += residual[i] * residual[i];
    }
    *prior = -0.5 * squares;
    *target = *prior - 0.5 * misfit - 0.5 * d * log(2 * M_PI * noise_std * noise_std);
    *proposal = half_log_det - 0.5 * from_mean;
  }
};

// -- the linearised network: t_l | x ~ N(mu_x, noise_std^2 G_x) ---------------------------------

// Vectors per kPairLanes inputs: mu (d), G's Cholesky factor row by row with inverse diagonal
// (d (d + 1) / 2), and minus half its log-determinant.
inline int64_t linear_stride(int64_t d) { return d + d * (d + 1) / 2 + 1; }

inline int64_t num_input_vectors(int64_t m) { return (m + kPairLanes - 1) / kPairLanes; }

// Linearises one vector of inputs at z = 0.
inline void linearise_inputs(PairVector& pair, int64_t vector, VecD* out) {
  const NoisyLayersView& layers = *pair.layers;
  const int d = pair.d;
  for (int l = 0; l < kPairLanes; ++l) {
    const int64_t x = vector * kPairLanes + l;
    const double* row = layers.first + (x < layers.m ? x : layers.m - 1) * layers.dims[0];
    for (int64_t c = 0; c < layers.dims[0]; ++c) pair.first[c][l] = row[c];
  }
  for (int k = 0; k < pair.L; ++k) pair.trial[k] = VecD{};
  for (int i = 0; i < d; ++i) pair.y[i] = VecD{};
  pair.linearise_at_trial(pair.along);
  for (int i = 0; i < d; ++i) *out++ = pair.out[i];
  for (int i = 0; i < d; ++i)
    for (int j = 0; j <= i; ++j) *out++ = pair.G[i * d + j];
  *out = -pair.half_log_det;
}

// log N(y; mu_x, noise_std^2 G_x) of all inputs, up to a constant.
inline void linear_log_densities(const VecD* linear, const double* y, int d, double noise_std,
                                 int64_t num_vectors, VecD* t, VecD* out) {
  const double inverse_std = 1 / noise_std;
  for (int64_t v = 0; v < num_vectors; ++v) {
    const VecD* mu = linear + v * linear_stride(d);
    const VecD* factor = mu + d;
    VecD squares = VecD{};
    for (int i = 0; i < d; ++i) {
      VecD sum = (y[i] - mu[i]) * inverse_std;
      for (int k = 0; k < i; ++k) sum -= *factor++ * t[k];
      t[i] = sum * *factor++;
      squares += t[i] * t[i];
    }
    out[v] = *factor - 0.5 * squares;
  }
}

// Inputs this far (nats) below the likeliest have no weight: they are left to the flat strata,
// and hardly any input is nearer at small noise.
constexpr double kFarInput = 45;

// The flat distribution: densities to this power, as if variances were eight times larger. Where
// the network curves, y lies many standard deviations off the linearised layer of every input,
// and r picks the wrong ones. Then this share uniform over the group, so that none is left out.
constexpr double kFlatPower = 0.125;
constexpr double kUniformShare = 0.25;

// A distribution over inputs [begin, end), proportional to e^(power log_weight), with a share that
// is uniform; searched by blocks.
struct InputDistribution {
  int64_t begin, end;
  double power, uniform_share;
  const double* log_weight;  // indexed by input
  double* weight;            // (end - begin), unnormalised, padded to whole vectors
  double* block_sum;         // per kSumBlock weights
  double top, total;

  void build() {
    const int64_t count = end - begin;
    VecD most = broadcast<double>(-INFINITY);
    int64_t x = begin;
    for (; x + kPairLanes <= end; x += kPairLanes) {
      const VecD here = load<double>(log_weight + x);
      most = here > most ? here : most;
    }
    top = -INFINITY;
    for (int l = 0; l < kPairLanes; ++l) top = most[l] > top ? most[l] : top;
    for (; x < end; ++x) top = log_weight[x] > top ? log_weight[x] : top;
    total = 0;
    for (int64_t i = 0; i < count; i += kSumBlock) {
      VecD sum = VecD{};
      for (int64_t j = i; j < i + kSumBlock && j < count; j += kPairLanes) {
        VecD below = broadcast<double>(INFINITY);
        if (j + kPairLanes <= count)
          below = power * (top - load<double>(log_weight + begin + j));
        else
          for (int64_t l = 0; l < count - j; ++l)
            below[l] = power * (top - log_weight[begin + j + l]);
        const Int<double> near = below < kFarInput;
        VecD w = VecD{};
        if (any<double>(near)) w = near ? exp_minus(below) : VecD{};
        store<double>(weight + j, w);
        sum += w;
      }
      double block = 0;
      for (int l = 0; l < kPairLanes; ++l) block += sum[l];
      block_sum[i / kSumBlock] = block;
      total += block;
    }
    if (uniform_share > 0) {
      const double floor = total * uniform_share / (1 - uniform_share) / double(count);
      for (int64_t j = 0; j < count; ++j) weight[j] += floor;
      for (int64_t i = 0; i < count; i += kSumBlock)
        block_sum[i / kSumBlock] += floor * double(count - i < kSumBlock ? count - i : kSumBlock);
      total /= 1 - uniform_share;
    }
  }

  double probability(int64_t x) const { return weight[x - begin] / total; }

  // Sum of the weights before x.
  double before(int64_t x) const {
    const int64_t at = x - begin, block = at / kSumBlock;
    double sum = 0;
    for (int64_t b = 0; b < block; ++b) sum += block_sum[b];
    for (int64_t i = block * kSumBlock; i < at; ++i) sum += weight[i];
    return sum;
  }

  // The input whose interval of the cumulative sum contains u * total, 0 <= u < 1.
  int64_t at_quantile(double u) const {
    double left = u * total;
    const int64_t count = end - begin;
    int64_t i = 0;
    for (; i + kSumBlock < count && left >= block_sum[i / kSumBlock]; i += kSumBlock)
      left -= block_sum[i / kSumBlock];
    for (; i + 1 < count && left >= weight[i]; ++i) left -= weight[i];
    while (weight[i] == 0 && i > 0) --i;  // rounding ran past the last weight
    return begin + i;
  }
};

// -- points ------------------------------------------------------------------------------------

constexpr int kPathChunk = 16;  // points whose pairs share vectors

// How the K proposals of a group are divided, in this order. The safeguards cost their share of K
// where the linearisation is good, and decide how fast the bracket closes where it is poor.
// Together they cover everything: no density of the mixture is ever zero.
struct Strata {
  int64_t likely;  // input from r, z from the Gaussian
  int64_t flat;    // input from r flattened, z from the Gaussian
  int64_t prior;   // input from r, z from the prior
  int64_t blind;   // input from r flattened, z from the prior

  explicit Strata(int64_t K) {
    flat = K / 8 > 1 ? K / 8 : 1;
    prior = blind = K / 16 > 1 ? K / 16 : 1;
    likely = K - flat - prior - blind;
  }
};

// One evaluation of the integrand: pair, noise path, and where the three densities go.
enum class Source { kProposal, kPrior, kOwnPath };
struct Evaluation {
  int32_t k;  // which stratum's normals
  Source source;
  int32_t result;  // index into the chunk's densities
};

struct PairList {
  int32_t point;  // within the chunk
  int64_t input;
  int32_t first_evaluation, num_evaluations;
};

struct Densities {
  double prior, target, proposal;
};

// What one thread needs; `allocate` with a null base counts the bytes.
struct PathScratch {
  PairVector pair;
  VecD *log_density, *substitution, *e, *u;
  double *weight[2], *block_sum[2], *log_w;
  int64_t* inputs;        // (chunk, G, K): the input of every stratum
  double* probabilities;  // (chunk, G, K, 2): its r, plain and flattened
  double* own_share;      // (chunk, G, 2, 2): those of the own input, and the sums before it
  int32_t* results;       // (chunk, G, K), then (chunk) own paths: index into densities
  Evaluation* evaluations;
  Evaluation* sorted;
  int32_t* evaluation_pair;
  PairList* pairs;
  int32_t* order;
  int32_t *stamp, *slot;  // (m): pair of an input for the current point
  Densities* densities;

  void allocate(const PathTask& task, int64_t largest_group, Arena& arena) {
    const int64_t G = task.num_groups, K = task.num_proposals, m = task.layers.m;
    const int64_t most = kPathChunk * (G * K + 1);
    pair.allocate(task.layers, arena);
    log_density = arena.take<VecD>(num_input_vectors(m));
    substitution = arena.take<VecD>(pair.d);
    e = arena.take<VecD>(pair.L);
    u = arena.take<VecD>(pair.d);
    for (int flat = 0; flat < 2; ++flat) {
      weight[flat] = arena.take<double>(largest_group + kPairLanes);
      block_sum[flat] = arena.take<double>(largest_group / kSumBlock + 1);
    }
    log_w = arena.take<double>(K);
    inputs = arena.take<int64_t>(kPathChunk * G * K);
    probabilities = arena.take<double>(kPathChunk * G * K * 2);
    own_share = arena.take<double>(kPathChunk * G * 4);
    results = arena.take<int32_t>(kPathChunk * G * K + kPathChunk);
    evaluations = arena.take<Evaluation>(most);
    sorted = arena.take<Evaluation>(most);
    evaluation_pair = arena.take<int32_t>(most);
    pairs = arena.take<PairList>(most);
    order = arena.take<int32_t>(most);
    stamp = arena.take<int32_t>(m);
    slot = arena.take<int32_t>(m);
    densities = arena.take<Densities>(most);
  }
};

// Chooses the inputs of all strata for point i and lists the evaluations they need.
inline void propose_inputs(const PathTask& task, const VecD* linear, int64_t i, int32_t in_chunk,
                           PathScratch& s, int32_t& num_pairs, int32_t& num_evaluations) {
  const int64_t N = task.num_points, G = task.num_groups, K = task.num_proposals;
  const int d = s.pair.d;
  linear_log_densities(linear, task.points + i * d, d, task.layers.noise_std,
                       num_input_vectors(task.layers.m), s.substitution, s.log_density);
  const double* uniforms = task.uniforms + i * (K + 2);
  const Strata strata(K);
  const int64_t own = task.own[i];

  auto pair_of = [&](int64_t input) {
    const int32_t known = s.slot[input];
    if (s.stamp[input] == int32_t(i)) return known;
    s.stamp[input] = int32_t(i);
    s.slot[input] = num_pairs;
    s.pairs[num_pairs] = {in_chunk, input, 0, 0};
    return num_pairs++;
  };
  auto evaluate = [&](int64_t input, int64_t k, Source source) {
    const int32_t pair = pair_of(input);
    s.evaluations[num_evaluations] = {int32_t(k), source, num_evaluations};
    s.evaluation_pair[num_evaluations] = pair;
    ++s.pairs[pair].num_evaluations;
    return num_evaluations++;
  };

  for (int64_t g = 0; g < G; ++g) {
    const int64_t* range = task.groups + 2 * (g * N + i);
    const double* log_density = reinterpret_cast<const double*>(s.log_density);
    InputDistribution distributions[2] = {
        {range[0], range[1], 1, 0, log_density, s.weight[0], s.block_sum[0], 0, 0},
        {range[0], range[1], kFlatPower, kUniformShare, log_density, s.weight[1], s.block_sum[1], 0,
         0}};
    for (InputDistribution& distribution : distributions) distribution.build();
    const int64_t row = (in_chunk * G + g) * K;
    for (int64_t k = 0; k < K; ++k) {
      // The stratum's kind and its place among its kind.
      const int64_t counts[4] = {strata.likely, strata.flat, strata.prior, strata.blind};
      int64_t place = k, kind = 0;
      for (; kind < 3 && place >= counts[kind]; ++kind) place -= counts[kind];
      const double u = (double(place) + uniforms[k]) / double(counts[kind]);
      const int64_t input = distributions[kind & 1].at_quantile(u);
      s.inputs[row + k] = input;
      for (int flat = 0; flat < 2; ++flat)
        s.probabilities[(row + k) * 2 + flat] = distributions[flat].probability(input);
      int32_t result = -1;  // the same stratum and input in another group: evaluated once
      for (int64_t other = 0; other < g; ++other) {
        const int64_t at = (in_chunk * G + other) * K + k;
        if (s.inputs[at] == input) result = s.results[at];
      }
      if (result < 0) result = evaluate(input, k, kind < 2 ? Source::kProposal : Source::kPrior);
      s.results[row + k] = result;
    }
    for (int flat = 0; flat < 2; ++flat) {
      double* share = s.own_share + (in_chunk * G + g) * 4 + 2 * flat;
      share[0] = distributions[flat].probability(own);
      share[1] = distributions[flat].before(own) / distributions[flat].total;
    }
  }
  s.results[kPathChunk * G * K + in_chunk] = evaluate(own, 0, Source::kOwnPath);
}

// Groups the evaluations by pair and the pairs by their number, so that lanes stay busy.
inline void sort_evaluations(PathScratch& s, int32_t num_pairs, int32_t num_evaluations) {
  int32_t at = 0;
  int32_t most = 0;
  for (int32_t p = 0; p < num_pairs; ++p) {
    s.pairs[p].first_evaluation = at;
    at += s.pairs[p].num_evaluations;
    most = s.pairs[p].num_evaluations > most ? s.pairs[p].num_evaluations : most;
    s.pairs[p].num_evaluations = 0;
  }
  for (int32_t e = 0; e < num_evaluations; ++e) {
    PairList& pair = s.pairs[s.evaluation_pair[e]];
    s.sorted[pair.first_evaluation + pair.num_evaluations++] = s.evaluations[e];
  }
  int32_t filled = 0;
  for (int32_t count = most; count >= 1; --count)
    for (int32_t p = 0; p < num_pairs; ++p)
      if (s.pairs[p].num_evaluations == count) s.order[filled++] = p;
}

// Evaluates the integrand for kPairLanes pairs; spare lanes repeat the last pair.
inline void evaluate_pairs(const PathTask& task, int64_t first_point, const int32_t* order,
                           int32_t count, PathScratch& s) {
  PairVector& pair = s.pair;
  const PairList* lane[kPairLanes];
  int32_t rounds = 0;
  for (int l = 0; l < kPairLanes; ++l) {
    lane[l] = &s.pairs[order[l < count ? l : count - 1]];
    rounds = lane[l]->num_evaluations > rounds ? lane[l]->num_evaluations : rounds;
    const double* row = task.layers.first + lane[l]->input * task.layers.dims[0];
    for (int64_t c = 0; c < task.layers.dims[0]; ++c) pair.first[c][l] = row[c];
    const double* y = task.points + (first_point + lane[l]->point) * pair.d;
    for (int i = 0; i < pair.d; ++i) pair.y[i][l] = y[i];
  }
  pair.find_mode();
  const int64_t width = pair.L + pair.d;
  for (int32_t round = 0; round < rounds; ++round) {
    bool any_proposal = false;
    const Evaluation* job[kPairLanes];
    const double* normals[kPairLanes];
    for (int l = 0; l < kPairLanes; ++l) {
      const int32_t within = round < lane[l]->num_evaluations ? round : 0;
      job[l] = &s.sorted[lane[l]->first_evaluation + within];
      const int64_t i = first_point + lane[l]->point;
      normals[l] = job[l]->source == Source::kOwnPath
                       ? task.path + i * pair.L
                       : task.normals + (i * task.num_proposals + job[l]->k) * width;
      any_proposal |= job[l]->source == Source::kProposal;
    }
    for (int k = 0; k < pair.L; ++k)
      for (int l = 0; l < kPairLanes; ++l) s.e[k][l] = normals[l][k];
    if (any_proposal) {
      for (int i = 0; i < pair.d; ++i)
        for (int l = 0; l < kPairLanes; ++l)
          s.u[i][l] = job[l]->source == Source::kProposal ? normals[l][pair.L + i] : 0;
      pair.draw(s.e, s.u);
    }
    Int<double> direct;
    for (int l = 0; l < kPairLanes; ++l) direct[l] = job[l]->source == Source::kProposal ? 0 : -1;
    for (int k = 0; k < pair.L; ++k) pair.z[k] = direct ? s.e[k] : pair.z[k];
    VecD prior, target, proposal;
    pair.densities(&prior, &target, &proposal);
    for (int l = 0; l < kPairLanes; ++l)
      if (round < lane[l]->num_evaluations)
        s.densities[job[l]->result] = {prior[l], target[l], proposal[l]};
  }
}

// K times the density of all strata at (x, z), by kind, relative to e^top. r: of x, plain and flat.
struct StrataDensity {
  double top, likely, flat, prior, blind;

  StrataDensity(const Densities& at, const double* r, const Strata& strata) {
    top = at.proposal > at.prior ? at.proposal : at.prior;
    likely = double(strata.likely) * r[0] * exp(at.proposal - top);
    flat = double(strata.flat) * r[1] * exp(at.proposal - top);
    prior = double(strata.prior) * r[0] * exp(at.prior - top);
    blind = double(strata.blind) * r[1] * exp(at.prior - top);
  }
  double sum() const { return likely + flat + prior + blind; }
};

// log of the weight of (x, z): prior x likelihood over the mixture of all strata.
inline double log_weight(const Densities& at, const double* r, double group_size, int64_t K) {
  const StrataDensity density(at, r, Strata(K));
  return at.target - log(group_size) - density.top - log(density.sum() / double(K));
}

inline double log_mean(const double* log_values, int64_t count) {
  LogSum total;
  for (int64_t k = 0; k < count; ++k) total.merge({-M_LOG2E * log_values[k], 1});
  return M_LN2 * total.log2_value() - log(double(count));
}

// Both sides of log p(y | group) from the densities of its strata.
inline void weigh(const PathTask& task, int64_t i, int64_t g, int32_t in_chunk, PathScratch& s) {
  const int64_t N = task.num_points, G = task.num_groups, K = task.num_proposals;
  const int64_t* range = task.groups + 2 * (g * N + i);
  const double size = double(range[1] - range[0]);
  const int64_t row = (in_chunk * G + g) * K;
  double top = -INFINITY;
  for (int64_t k = 0; k < K; ++k) {
    s.log_w[k] =
        log_weight(s.densities[s.results[row + k]], s.probabilities + 2 * (row + k), size, K);
    top = s.log_w[k] > top ? s.log_w[k] : top;
  }
  double sum = 0, squares = 0;
  for (int64_t k = 0; k < K; ++k) {
    const double w = exp(s.log_w[k] - top);
    sum += w;
    squares += w * w;
  }
  task.effective[g * N + i] = sum * sum / (squares * double(K));
  task.lower[g * N + i] = log_mean(s.log_w, K);

  // -- the path that made y takes the place of one stratum ------------------------------------
  const Densities& own = s.densities[s.results[kPathChunk * G * K + in_chunk]];
  const double* share = s.own_share + (in_chunk * G + g) * 4;
  const double r[2] = {share[0], share[2]};
  const Strata strata(K);
  const StrataDensity density(own, r, strata);
  const double* uniforms = task.uniforms + i * (K + 2) + K;
  const double choice = uniforms[0] * density.sum();
  // Position of the own input within the strata of each kind, then the stratum around it.
  auto stratum = [&](int flat, int64_t count) {
    const double place = (share[2 * flat + 1] + uniforms[1] * r[flat]) * double(count);
    if (!(place > 0)) return int64_t(0);  // also where a density overflowed and is NaN
    return place < double(count) ? int64_t(place) : count - 1;
  };
  int64_t replaced = 0;
  if (choice < density.likely)
    replaced = stratum(0, strata.likely);
  else if (choice < density.likely + density.flat)
    replaced = strata.likely + stratum(1, strata.flat);
  else if (choice < density.likely + density.flat + density.prior)
    replaced = strata.likely + strata.flat + stratum(0, strata.prior);
  else
    replaced = strata.likely + strata.flat + strata.prior + stratum(1, strata.blind);
  s.log_w[replaced] = log_weight(own, r, size, K);
  task.upper[g * N + i] = log_mean(s.log_w, K);
}

// Points [first, last), at most kPathChunk. linear: all inputs, linearised.
inline void path_chunk(const PathTask& task, const void* linear, int64_t first, int64_t last,
                       int64_t largest_group, void* memory) {
  const FlushDenormals flush;
  Arena arena{reinterpret_cast<uintptr_t>(memory)};
  PathScratch s;
  s.allocate(task, largest_group, arena);
  memset(s.stamp, 0xff, size_t(task.layers.m) * sizeof(int32_t));
  memset(s.slot, 0xff, size_t(task.layers.m) * sizeof(int32_t));
  int32_t num_pairs = 0, num_evaluations = 0;
  for (int64_t i = first; i < last; ++i)
    propose_inputs(task, static_cast<const VecD*>(linear), i, int32_t(i - first), s, num_pairs,
                   num_evaluations);
  sort_evaluations(s, num_pairs, num_evaluations);
  for (int32_t p = 0; p < num_pairs; p += kPairLanes)
    evaluate_pairs(task, first, s.order + p,
                   num_pairs - p < kPairLanes ? num_pairs - p : kPairLanes, s);
  for (int64_t i = first; i < last; ++i)
    for (int64_t g = 0; g < task.num_groups; ++g) weigh(task, i, g, int32_t(i - first), s);
}

inline void path_linearise(const PathTask& task, int64_t vector, void* linear, void* memory) {
  const FlushDenormals flush;
  Arena arena{reinterpret_cast<uintptr_t>(memory)};
  PairVector pair;
  pair.allocate(task.layers, arena);
  linearise_inputs(pair, vector, static_cast<VecD*>(linear) + vector * linear_stride(pair.d));
}

inline PathKernel path_kernel() {
  return {[](const PathTask& task, int64_t largest_group) {
            Arena arena{0};
            PathScratch s;
            s.allocate(task, largest_group, arena);
            return arena.used;
          },
          [](const PathTask& task) {
            const int64_t d = task.layers.dims[task.layers.num_layers - 1];
            return num_input_vectors(task.layers.m) * linear_stride(d) * int64_t(sizeof(VecD));
          },
          kPairLanes,
          kPathChunk,
          &path_linearise,
          &path_chunk};
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow
