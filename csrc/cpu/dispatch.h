// Chooses the kernels of one CPU target at run time.

#pragma once
#include "../core/views.h"

namespace noisyflow {

constexpr int kGroupsPerTask = 16;  // a tile of centers serves this many groups of points

// How to evaluate one task of points on one target.
template <class T>
struct KernelChoice {
  // Groups [first, last) of points, at most kGroupsPerTask.
  void (*evaluate)(const Task<T>& task, int64_t first, int64_t last, void* scratch);
  int64_t scratch_bytes;  // per thread, 64-byte aligned
  int group;              // points that share vectors
  // Over a tree: blocks [first, last) of `group` points together, or point by point.
  void (*evaluate_blocks)(const TreeTask<T>& task, int64_t first, int64_t last, void* scratch,
                          TreeCounts& counts);
  void (*evaluate_points)(const TreeTask<T>& task, int64_t first, int64_t last, void* scratch,
                          TreeCounts& counts);
  int64_t (*tree_scratch_bytes)(const TreeView<T>& tree);
  // The centroid of some centers, and radius, mean_square and weight of their cell.
  void (*cell_shape)(const T* rows, int64_t count, int64_t d, double noise_std,
                     const T* weight_shift, T* centroid, Cell* cell);
  // Sums of w_j u_j^a, u_j the distance from the centroid over noise_std, nested for the order.
  // scratch: 64 bytes per coefficient, aligned.
  void (*cell_moments)(const T* rows, int64_t count, int64_t d, double noise_std,
                       const T* weight_shift, const T* centroid, int order, double* moments,
                       void* scratch);
};

// Preparation of the expanded form (ExpandedCenters) on one target.
template <class T>
struct ExpansionKernel {
  int together;       // centers of a block
  int least_step;     // ExpandedCenters::step
  double most_error;  // of an exponent, nats: see log_density-inl.h
  // Norms and spread of blocks [first, last), for the origin and step of `form`; and rows, unless
  // they are null: centers as given.
  void (*expand)(const MixtureView<T>& mixture, const ExpandedCenters<T>& form, int64_t first,
                 int64_t last, T* rows, T* norms, T* spread);
};

// Path importance on one target: linearise vectors of inputs, then evaluate chunks of points.
struct PathKernel {
  int64_t (*scratch_bytes)(const PathTask& task, int64_t largest_group);  // per thread
  int64_t (*linear_bytes)(const PathTask& task);
  int inputs_per_vector;
  int points_per_chunk;
  void (*linearise)(const PathTask& task, int64_t vector, void* linear, void* scratch);
  void (*evaluate)(const PathTask& task, const void* linear, int64_t first, int64_t last,
                   int64_t largest_group, void* scratch);
};

// Replicas of the noise path on one target: evaluate points [first, last).
struct ReplicaKernel {
  int64_t (*scratch_bytes)(const ReplicaTask& task);  // per thread
  void (*evaluate)(const ReplicaTask& task, int64_t first, int64_t last, void* scratch);
};

// Components with their own covariance on one target: pack ranges of components, then evaluate
// points.
template <class T>
struct CovarianceKernel {
  void (*pack)(const CovarianceTask<T>& task, int64_t begin, int64_t end, T* packed);
  void (*evaluate)(const CovarianceTask<T>& task, const T* packed, int64_t first, int64_t last,
                   void* scratch);
  int64_t (*component_size)(int64_t d);  // numbers of a packed component
  int64_t scratch_bytes;                 // per thread, 64-byte aligned
  int group;                             // points that share a vector
  int together;  // packed components are a multiple of this many; those beyond n add nothing
};

// Posterior moments on one target.
template <class T>
struct PosteriorKernel {
  void (*evaluate)(const PosteriorTask<T>& task, int64_t first, int64_t last, void* scratch);
  int64_t (*scratch_bytes)(int64_t d);  // per thread, 64-byte aligned
  int group;                            // points that share a vector
};

// One direction of gradients on one target.
template <class T>
struct GradientKernel {
  // Blocks [first, last) of rows, at most `most_blocks(d)`. Returns how many pairs that took.
  int64_t (*evaluate)(const GradientPass<T>& pass, int64_t first, int64_t last, void* scratch);
  // The columns of a tree that a block of rows needs.
  int64_t (*count_columns)(const GradientPass<T>& pass, int64_t block, void* scratch);
  int64_t (*scratch_bytes)(const GradientPass<T>& pass);  // per thread, 64-byte aligned
  int64_t (*most_blocks)(int64_t d);
  int group;          // rows that share vectors
  int together;       // columns of a block
  double most_error;  // of an exponent in expanded form, nats: see log_density-inl.h
};

struct KernelTable {
  const char* name;
  KernelChoice<float> (*choose_f32)(int64_t d);
  KernelChoice<double> (*choose_f64)(int64_t d);
  PathKernel path;
  ReplicaKernel replicas;
  CovarianceKernel<float> covariance_f32;
  CovarianceKernel<double> covariance_f64;
  ExpansionKernel<float> expansion_f32;
  ExpansionKernel<double> expansion_f64;
  PosteriorKernel<float> posterior_f32;
  PosteriorKernel<double> posterior_f64;
  GradientKernel<float> gradient_f32;
  GradientKernel<double> gradient_f64;
};

// The kernels for dimension d.
template <class T>
KernelChoice<T> choose_kernel(const KernelTable& table, int64_t d) {
  if constexpr (sizeof(T) == 4)
    return table.choose_f32(d);
  else
    return table.choose_f64(d);
}

KernelTable kernels_baseline();
KernelTable kernels_neon();
KernelTable kernels_avx2();
KernelTable kernels_avx512();

// The targets this CPU can run, best first; the last is "baseline", on ARM64 "neon".
int num_available_targets();
const KernelTable& available_target(int index);

// The table in use. Chosen at first use: NOISYFLOW_CPU_TARGET if set, else the best available.
// Throws std::invalid_argument where that names no available target.
const KernelTable& active_target();
// Forces a target by name; null returns to the automatic choice. Throws std::invalid_argument.
void force_target(const char* name);

// Evaluates all points of the task with these kernels on at most num_threads threads. Groups of
// points are made here.
template <class T>
void run_task(const Task<T>& task, const KernelTable& table, int num_threads);

// Every `every`-th part of the blocks of points: all for 1. point_by_point: one after the other
// through the tree's columns, instead of a block at a time.
template <class T>
TreeCounts run_tree_task(const TreeTask<T>& task, const KernelTable& table, bool point_by_point,
                         int64_t every, int num_threads);

enum class TreePath { kChoose = 0, kEveryPair = 1, kBlocks = 2, kPointByPoint = 3 };

// The path that is least work, by running a sample of the points each way and counting.
struct TreePlan {
  TreePath path;
  int64_t num_sampled;
  TreeCounts sample;  // the chosen path's
  double seconds;     // of its sample; never looked at to choose
};
// Whether a few of the points, one by one through the tree, are more work than every pair: then
// they need not be ordered. task.points and task.out are not looked at.
template <class T>
bool is_tree_hopeless(const TreeTask<T>& task, const KernelTable& table, const PointsView<T>& x);
template <class T>
TreePlan choose_path(const TreeTask<T>& task, const KernelTable& table);

template <class T>
void run_covariance_task(const CovarianceTask<T>& task, const KernelTable& table, int num_threads);

template <class T>
void run_posterior_task(const PosteriorTask<T>& task, const KernelTable& table, int num_threads);

// Returns how many pairs it took, both passes together.
template <class T>
int64_t run_gradient_task(const GradientTask<T>& task, const KernelTable& table, int num_threads);

void run_path_task(const PathTask& task, const KernelTable& table, int num_threads);
void run_replica_task(const ReplicaTask& task, const KernelTable& table, int num_threads);

}  // namespace noisyflow
