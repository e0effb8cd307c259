// Aligned memory, and how many threads a call is worth.

#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace noisyflow {

struct AlignedDelete {
  void operator()(void* memory) const { std::free(memory); }
};
using Scratch = std::unique_ptr<void, AlignedDelete>;

inline Scratch allocate(int64_t bytes) {
  void* memory = std::aligned_alloc(64, size_t((bytes + 63) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  return Scratch(memory);
}

// Below this many pair-dimensions a second thread costs more than it saves (about 20 us each).
// Builds under a sanitizer set it to 1: threads are to be seen there, however little there is to
// do.
#if !defined(NOISYFLOW_WORK_PER_THREAD)
#define NOISYFLOW_WORK_PER_THREAD 4e6
#endif

// Fewer threads than asked for where the work does not pay for them.
inline int worthwhile_threads(double work, int num_threads) {
  constexpr double kWorkPerThread = NOISYFLOW_WORK_PER_THREAD;
  const double worthwhile = 1 + work / kWorkPerThread;
  return num_threads > worthwhile ? int(worthwhile) : num_threads;
}

}  // namespace noisyflow
