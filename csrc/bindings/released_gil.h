// While a kernel runs, other Python threads may; and the interpreter may end.

#pragma once
#include <Python.h>

#include <chrono>
#include <thread>

namespace noisyflow {

// Releases the GIL, to take it again at its end. pybind11's own guard lets a thread that finds the
// interpreter gone end in terminate(): up to Python 3.13 it is unwound from within the destructor.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      // pthread_exit(), the one thing that comes this way. Unwinding would touch Python objects, of
      // which there are none any more: wait for the process to end, as Python 3.14 does.
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace noisyflow
