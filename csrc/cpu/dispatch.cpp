// Reads the CPU's features, keeps the forced choice, and cuts a call into tasks.

#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"

namespace noisyflow {
namespace {

// Below this many pair-dimensions a second thread costs more than it saves (about 20 us each).
constexpr double kWorkPerThread = 4e6;

const std::vector<KernelTable>& tables() {
  static const std::vector<KernelTable> found = [] {
    std::vector<KernelTable> list;
#if defined(NOISYFLOW_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
      list.push_back(kernels_avx512());
    if (avx2) list.push_back(kernels_avx2());
#endif
    list.push_back(kernels_baseline());
    return list;
  }();
  return found;
}

const KernelTable& find_target(const char* name, const char* who) {
  std::string known;
  for (const KernelTable& table : tables()) {
    if (std::strcmp(table.name, name) == 0) return table;
    known += (known.empty() ? "'" : ", '") + std::string(table.name) + "'";
  }
  throw std::invalid_argument(std::string(who) + " must be one of " + known +
                              " on this CPU, got '" + name + "'");
}

std::atomic<const KernelTable*> forced{nullptr};

struct AlignedDelete {
  void operator()(void* memory) const { std::free(memory); }
};
using Scratch = std::unique_ptr<void, AlignedDelete>;

Scratch allocate(int64_t bytes) {
  void* memory = std::aligned_alloc(64, size_t((bytes + 63) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  return Scratch(memory);
}

}  // namespace

int num_available_targets() { return int(tables().size()); }
const KernelTable& available_target(int index) { return tables()[size_t(index)]; }

const KernelTable& active_target() {
  if (const KernelTable* table = forced.load()) return *table;
  const char* wanted = std::getenv("NOISYFLOW_CPU_TARGET");
  return wanted && *wanted ? find_target(wanted, "NOISYFLOW_CPU_TARGET") : tables().front();
}

void force_target(const char* name) { forced = name ? &find_target(name, "CPU target") : nullptr; }

template <class T>
void run_task(const Task<T>& task, const KernelTable& table, int num_threads) {
  const int64_t m = task.points.m;
  if (m == 0) return;
  const int64_t d = task.mixture.d;
  const KernelChoice<T> kernel = choose_kernel<T>(table, d);

  const double work = double(m) * double(task.mixture.n) * double(d + 4);
  const double worthwhile = 1 + work / kWorkPerThread;
  if (num_threads > worthwhile) num_threads = int(worthwhile);

  // Small calls are cut finer, so that every thread has several tasks. Always between groups: a
  // point's sum depends on nothing beyond its group, so the cut cannot change a result.
  const int64_t groups = (m + kernel.group - 1) / kernel.group;
  int64_t groups_per_task = groups / (4 * int64_t(num_threads));
  groups_per_task = groups_per_task < 1                ? 1
                    : groups_per_task > kGroupsPerTask ? kGroupsPerTask
                                                       : groups_per_task;
  const int64_t step = groups_per_task * kernel.group;

  std::vector<Scratch> scratch;
  for (int thread = 0; thread < num_threads; ++thread)
    scratch.push_back(allocate(kernel.scratch_bytes));
  parallel_for((m + step - 1) / step, num_threads, [&](int thread, int64_t index) {
    const int64_t first = index * step;
    const int64_t last = first + step < m ? first + step : m;
    kernel.evaluate(task, first, last, scratch[size_t(thread)].get());
  });
}

template <class T>
int64_t run_skipping_task(const SkippingTask<T>& task, const KernelTable& table, int num_threads) {
  constexpr int64_t kGroupsTogether = 8;
  const KernelChoice<T> kernel = choose_kernel<T>(table, task.d);
  const int64_t num_tasks = (task.points.num_blocks + kGroupsTogether - 1) / kGroupsTogether;
  num_threads = int(std::min<int64_t>(num_threads, num_tasks));
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < num_threads; ++thread)
    scratch.push_back(allocate(kernel.skipping_scratch_bytes(task)));
  std::atomic<int64_t> evaluated{0};
  parallel_for(num_tasks, num_threads, [&](int thread, int64_t index) {
    const int64_t first = index * kGroupsTogether;
    const int64_t last = std::min(first + kGroupsTogether, task.points.num_blocks);
    evaluated += kernel.evaluate_skipping(task, first, last, scratch[size_t(thread)].get());
  });
  return evaluated;
}

template int64_t run_skipping_task<float>(const SkippingTask<float>&, const KernelTable&, int);
template int64_t run_skipping_task<double>(const SkippingTask<double>&, const KernelTable&, int);

void run_path_task(const PathTask& task, const KernelTable& table, int num_threads) {
  if (task.num_points == 0) return;
  const PathKernel& kernel = table.path;
  const int64_t step = kernel.points_per_chunk;
  const int64_t num_chunks = (task.num_points + step - 1) / step;
  num_threads = int(std::min<int64_t>(num_threads, num_chunks));
  int64_t largest_group = 1;
  for (int64_t i = 0; i < task.num_groups * task.num_points; ++i)
    largest_group = std::max(largest_group, task.groups[2 * i + 1] - task.groups[2 * i]);

  const Scratch linear = allocate(kernel.linear_bytes(task));
  const int64_t bytes = kernel.scratch_bytes(task, largest_group);
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < num_threads; ++thread) scratch.push_back(allocate(bytes));
  const int64_t vectors = (task.layers.m + kernel.inputs_per_vector - 1) / kernel.inputs_per_vector;
  parallel_for(vectors, num_threads, [&](int thread, int64_t vector) {
    kernel.linearise(task, vector, linear.get(), scratch[size_t(thread)].get());
  });
  parallel_for(num_chunks, num_threads, [&](int thread, int64_t chunk) {
    const int64_t last = std::min(task.num_points, (chunk + 1) * step);
    kernel.evaluate(task, linear.get(), chunk * step, last, largest_group,
                    scratch[size_t(thread)].get());
  });
}

template void run_task<float>(const Task<float>&, const KernelTable&, int);
template void run_task<double>(const Task<double>&, const KernelTable&, int);

}  // namespace noisyflow
