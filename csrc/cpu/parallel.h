// Work sharing without a pool: threads live for one call, so there is nothing to reset after
// fork().
//
// Tasks are fixed before threads are counted, so the thread count cannot change a result.

#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace noisyflow {

// Calls work(thread, task) once for every task in [0, num_tasks). The first exception is rethrown.
template <class Work>
void parallel_for(int64_t num_tasks, int num_threads, Work work) {
  if (num_threads > num_tasks) num_threads = int(num_tasks);
  if (num_threads <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) work(0, task);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_lock;
  auto run = [&](int thread) {
    try {
      for (int64_t task; (task = next.fetch_add(1)) < num_tasks;) work(thread, task);
    } catch (...) {
      std::lock_guard<std::mutex> hold(failure_lock);
      if (!failure) failure = std::current_exception();
      next = num_tasks;
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(size_t(num_threads) - 1);
  try {
    for (int thread = 1; thread < num_threads; ++thread) threads.emplace_back(run, thread);
  } catch (...) {
    // No more threads or memory to be had: those that started, and this one, do the work.
  }
  run(0);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace noisyflow
