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

// Constants, so that target files need not instantiate functions of the standard library.
template <class T>
constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
template <class T>
constexpr T kLargest = std::numeric_limits<T>::max();

// m points, rows `stride` elements apart, each row contiguous.
template <class T>
struct PointsView {
  const T* points;
  int64_t stride;
  int64_t m;
};

// Where a center belongs: its block [inner_begin, inner_end) and the outer block
// [outer_begin, outer_end) around that.
struct Membership {
  int32_t inner_begin, inner_end;
  int32_t outer_begin, outer_end;
};

// Neighbouring points [begin, end) that share vectors.
struct PointGroup {
  int64_t begin, end;
};

// The parts into which the mixture's sum at a point is split; the order of the outputs.
enum Part { kInner = 0, kOuter = 1, kRest = 2, kOwn = 3, kNumParts = 4 };

// With less noise the bound of the expanded form's rounding, of fourth powers of coordinates, would
// underflow where they count.
constexpr double kLeastExpandedNoise = 1e-70;

// Centers for the form |x - o|^2 + |y - o|^2 - 2 (x - o).(y - o), in blocks of `together`
// (ExpansionKernel). The centers beyond the last whole block are left to the direct form.
template <class T>
struct ExpandedCenters {
  const T* origin;  // o, (d,)
  int step;         // dimensions in a row between two constants
  double most;      // spread of a point and of a center together, beyond which rounding counts
  const T* rows;    // y - o, `stride` elements apart
  int64_t stride;
  const T* norms;   // (n, number of steps): |y - o|^2 of each step, the first with the weight_shift
  const T* spread;  // of each block: sqrt(sum of squared |y - o|^2 of all steps), the largest
};

// A log-density at points, or with `own` the parts of the mixture's sum. Outputs are log-densities
// in nats; without own all centers count as kInner and only out[kInner] is written.
template <class T>
struct Task {
  PointsView<T> points;
  MixtureView<T> mixture;
  const int64_t* own;            // the center of each point; null: plain log-density
  const Membership* membership;  // of each center
  const PointGroup* groups;      // null: as many points as a group can hold, one after another
  int64_t num_groups;
  bool include_rest;  // false: out[kInner] and out[kOwn] alone
  T* out[kNumParts];
  const ExpandedCenters<T>* expanded;  // null: differences alone
};

// Points in blocks that lie close together: rows begins[b] .. begins[b + 1] - 1 of block b.
template <class T>
struct BlocksView {
  const T* rows;         // (m, d), in the order of the blocks
  const int32_t* order;  // (m,): the original row of every row here
  const int64_t* begins;
  int64_t num_blocks;
};

constexpr int kFanout = 16;  // children of a tree's node: one vector of floats
constexpr int32_t kNoChild = INT32_MIN;
// Polynomials that stand for cells: their order, variables and coefficients, at most.
constexpr int kMaxOrder = 24, kMaxCellDims = 32, kMaxCoefficients = 16000;
constexpr int kMaxMonomials = 1024;  // kept at once by the graded form of a polynomial

// A leaf whose centers a polynomial can stand for: its sum at x is about
// exp(-|x - centroid|^2 / (2 noise_std^2)) * polynomial((x - centroid) / noise_std).
// Lengths are in units of noise_std.
struct Cell {
  double radius;       // largest distance of a center from the centroid, rounded up
  double mean_square;  // of those distances, rounded up: Jensen's bound of the sum from below
  double weight;       // number of centers, or the sum of their weights
  double log2_weight;
  // Per order p = 2, 4, ..: -log2 of what cutting off the polynomial changes for a center, on
  // average, next to the cell: mean |u|^p 1.0865 / sqrt(p!), rounded up.
  float bits[kMaxOrder / 2];
  float work[kMaxOrder / 2];  // instructions of the polynomial for a vector of points, about
  int max_order;              // total degree of its longest polynomial plus 1; 0: none
  int graded_below;     // polynomials of lower orders are graded, the others nested: polynomials.h
  int64_t polynomials;  // where they begin, one after the other for orders 2, 4, .. max_order
};

// Centers in the leaves of a tree with kFanout children per node, node 0 being the root.
template <class T>
struct TreeView {
  int64_t n, d, num_leaves, depth;
  const T* rows;            // (n, d), leaf after leaf
  const int32_t* order;     // (n,): the original row of every row here
  const int64_t* begins;    // (num_leaves + 1,)
  const T* leaf_boxes;      // (num_leaves, 2, d): lower and upper corners
  const T* node_boxes;      // (num_nodes, 2, d, kFanout) of the children; missing ones at infinity
  const int32_t* children;  // (num_nodes, kFanout): a node, ~leaf or kNoChild
  // Leaves by dimension, each padded to whole vectors of kFanout centers.
  const T* columns;
  const int64_t* column_begins;  // (num_leaves,): in vectors
  const Cell* cells;             // (num_leaves,); null: no polynomials
  const T* centroids;            // (num_leaves, d)
  const T* polynomials;
  const T* weight_shift;  // in the order of the rows; null: uniform weights
};

// What an evaluation over a tree did.
struct TreeCounts {
  int64_t pairs = 0;       // points x centers evaluated one by one, in parts if given up
  int64_t aggregated = 0;  // points x centers represented by polynomials
  int64_t terms = 0;       // points x coefficients of those
  int64_t term_work = 0;   // instructions that they took, about
  int64_t boxes = 0;       // comparisons of a point or block with a box
};

// Gradients of sum_i grad_output[i] log sum_j w_j N(x_i; y_j, noise_std^2 I). Outputs are null
// where they are not wanted. A gradient too large for T is the largest number of T. A point whose
// grad_output is zero takes no time; one that is not finite makes everything NaN.
template <class T>
struct GradientTask {
  PointsView<T> points;
  MixtureView<T> mixture;
  const T* weights;      // (n,), those of mixture.weight_shift; null: uniform
  const T* log_density;  // (m,): as saved; a wrong one costs time, not digits
  const T* grad_output;  // (m,)
  double max_lost_mass;  // 0: every pair
  T* grad_points;        // (m, d)
  T* grad_centers;       // (n, d)
  T* grad_weights;       // (n,)
  double* grad_noise_std;
};

// Columns in the leaves of a tree, and which of them a row needs: those whose squared distance is
// below the limits of both.
template <class T>
struct GradientTree {
  TreeView<T> tree;
  const int64_t* begins;  // (num_leaves + 1,): of the columns of a leaf, in whole blocks
  const T* row_limits;    // (rows.m,); null: none
  const T* leaf_limits;   // (num_leaves,): the largest of the columns'; null: none
  const T* node_limits;   // (num_nodes, kFanout), of the children; null: none
};

// One direction of these: rows in the lanes of vectors, columns broadcast. With
// q_rc = 2^(-scale (|row_r - column_c|^2 + shift_c - base_r)) multiplier_c,
//
//   mass[r] = sum_c q_rc,   gradient[r] = gain_r sum_c q_rc (column_c - row_r) / noise_std^2.
template <class T>
struct GradientPass {
  PointsView<T> rows;
  const int32_t* order;  // (rows.m,): where a row's numbers and results are; null: at its index
  const int64_t*
      blocks;  // begins of blocks of rows that share vectors, and rows.m; null: full ones
  int64_t num_blocks;
  int64_t d;
  double noise_std;
  const T* base;   // (rows.m,)
  const T* gains;  // (rows.m,), further divided by mass[r]; null: `gain` for all, not divided
  double gain;
  const T* columns;  // `stride` apart
  int64_t stride, num_columns;
  // Squares of `step` dimensions in a row, for rows (rows.m, number of steps) and columns, which
  // are both relative to an origin then; 0 and null: differences.
  int64_t step;
  const T* row_norms;
  const T* column_norms;
  // Of each column, and, like the norms, of as many more as make whole blocks, which are at kNever
  // and zero.
  const T* shift;
  const T* multiplier;          // null: 1
  const GradientTree<T>* tree;  // over the columns; null: every pair
  // Rows whose terms without their weight may be larger than any number: such a mass is NaN.
  bool is_light;
  double* mass;     // (rows.m,); 0 if it is out of range, and then the others are not set
  T* gradient;      // (rows.m, d); null: not wanted
  double* squares;  // (rows.m,): sum_c q_rc |row_r - column_c|^2 / mass[r]; null: not wanted
};

// A log-density that may leave out far centers and let polynomials stand for near ones.
template <class T>
struct TreeTask {
  TreeView<T> tree;
  BlocksView<T> points;
  // Per row of points, the row of the tree that is left out of its sum; null: none is.
  const int32_t* own;
  double noise_std;
  // The sum at a point is changed by at most this fraction, before rounding.
  double max_lost_mass;
  T* out;  // (m,), in the original order of the points
};

// The log-density of a mixture whose components have their own covariance:
// out[i] = log sum_j w_j N(x_i; mu_j, Sigma_j), nats.
constexpr int64_t kMaxCovarianceDim = 32;  // all of a pair's differences stay in L1

template <class T>
struct CovarianceTask {
  PointsView<T> points;
  PointsView<T> centers;  // mu_j, m of them
  const T* whitening;     // (n, d, d): A_j lower triangular, A_j Sigma_j A_j' = I, diagonal > 0
  const T* weights;       // (n,); null: 1/n each
  int64_t d;              // at most kMaxCovarianceDim
  T* out;                 // (m,)
};

// The posterior of the center y_j of a point x_i: p_ij proportional to w_j N(x_i; y_j, noise_std^2
// I).
constexpr int64_t kMaxMomentDim = 32;  // sums of all second moments stay in L2

template <class T>
struct PosteriorTask {
  PointsView<T> points;
  MixtureView<T> mixture;  // d at most kMaxMomentDim
  double unit;             // of the lengths in mean and covariance
  T* log_density;          // (m,): log sum_j w_j N(x_i; y_j, noise_std^2 I), nats
  T* mean;                 // (m, d): sum_j p_ij (y_j - x_i)
  T* covariance;           // (m, d, d)
};

// What a hidden layer applies to its pre-activation.
enum class Activation { kLinear = 0, kTanh = 1, kSigmoid = 2, kRelu = 3, kLeakyRelu = 4 };
constexpr double kLeakySlope = 0.01;

// Noisy layers 1 .. l of a multilayer perceptron, for the density of t_l = s_l + noise.
// Of layer 1 only its clean output for every input is needed: first, (m, dims[0]).
struct NoisyLayersView {
  int num_layers;                // l >= 2
  const int64_t* dims;           // (l,): widths of layers 1 .. l
  const double* const* weights;  // (l,): weights[i] is (dims[i], dims[i-1]); weights[0] unused
  const double* const* biases;   // (l,): biases[0] unused
  Activation activation;
  double noise_std;
  const double* first;
  int64_t m;
};

// Path importance sampling of log p(t_l | group of inputs), for N points and G groups each.
struct PathTask {
  NoisyLayersView layers;
  int64_t num_points, num_groups, num_proposals;  // N, G, K >= 4
  const double* points;                           // (N, d_l)
  const int64_t* own;                             // (N,): the input that made each point
  const double* path;      // (N, L): its noise in layers 1 .. l-1, in units of noise_std
  const int64_t* groups;   // (G, N, 2): inputs [begin, end), containing own
  const double* uniforms;  // (N, K + 2) in [0, 1)
  const double* normals;   // (N, K, L + d_l)
  double* lower;           // (G, N): E lower <= log p
  double* upper;           // (G, N): E upper >= log p
  double* effective;       // (G, N): effective sample size as a share of K
};

// log p(t_l | own input) from draws of the noise, for N points. Draw k of point i is the column
// offsets[i] + k of the normals, so that points can share them.
struct ReplicaTask {
  NoisyLayersView layers;
  int64_t num_points, num_draws, num_columns;  // N, K >= 1, P >= K
  const double* points;                        // (N, d_l)
  const int64_t* own;                          // (N,)
  const double* path;                          // (N, L), as in PathTask
  const double* normals;                       // (L, P)
  const int64_t* offsets;                      // (N,) in [0, P - K]
  double* lower;                               // (N,): E lower <= log p
  double* upper;                               // (N,): E upper >= log p
  double* effective;                           // (N,): effective sample size as a share of K
};

}  // namespace noisyflow
