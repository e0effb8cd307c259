// Chooses the kernels of one CPU target at run time.

#pragma once
#include "../core/views.h"

namespace noisyflow {

constexpr int kGroupsPerTask = 16;  // a tile of centers serves this many groups of points

// How to evaluate one task of points on one target.
template <class T>
struct KernelChoice {
  void (*evaluate)(const Task<T>& task, int64_t first, int64_t last, void* scratch);
  int64_t scratch_bytes;  // per thread, 64-byte aligned
  int group;              // points that share a vector
  // Blocks of `group` points; returns the number of pairs evaluated.
  int64_t (*evaluate_skipping)(const SkippingTask<T>& task, int64_t first, int64_t last,
                               void* scratch);
  int64_t (*skipping_scratch_bytes)(const SkippingTask<T>& task);
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

struct KernelTable {
  const char* name;
  KernelChoice<float> (*choose_f32)(int64_t d);
  KernelChoice<double> (*choose_f64)(int64_t d);
  PathKernel path;
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
KernelTable kernels_avx2();
KernelTable kernels_avx512();

// The targets this CPU can run, best first; the last is "baseline".
int num_available_targets();
const KernelTable& available_target(int index);

// The table in use. Chosen at first use: NOISYFLOW_CPU_TARGET if set, else the best available.
// Throws std::invalid_argument where that names no available target.
const KernelTable& active_target();
// Forces a target by name; null returns to the automatic choice. Throws std::invalid_argument.
void force_target(const char* name);

// Evaluates all points of the task with these kernels on at most num_threads threads.
template <class T>
void run_task(const Task<T>& task, const KernelTable& table, int num_threads);

// The same, leaving out what provably cannot matter; returns the number of pairs evaluated.
template <class T>
int64_t run_skipping_task(const SkippingTask<T>& task, const KernelTable& table, int num_threads);

void run_path_task(const PathTask& task, const KernelTable& table, int num_threads);

}  // namespace noisyflow
