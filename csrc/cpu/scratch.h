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

// Fewer threads than asked for where the work does not pay for them.
inline int worthwhile_threads(double work, int num_threads) {
  // Below this many pair-dimensions a second thread costs more than it saves (about 20 us each).
  constexpr double kWorkPerThread = 4e6;
  const double worthwhile = 1 + work / kWorkPerThread;
  return num_threads > worthwhile ? int(worthwhile) : num_threads;
}

}  // namespace noisyflow
