#!/usr/bin/env bash
# Builds the extension under sanitizers and fuzzes it; the last line says what was run.
#
#     tests/fuzz/run.sh [CASES [SEED [THREAD_CASES]]]
#
# Needs pybind11, numpy and scipy in the Python that `python` is, cmake, ninja and GCC or Clang (CXX),
# and some 20 minutes of processor time to build. Address and undefined behaviour: the extension in
# Python, calls of fuzz_core.py, every piece of memory filled with NaN before it is handed out. Leaks:
# growth over calls, in fuzz_lifetimes.py. Threads: the kernels without Python, in fuzz_threads.cpp.
set -euo pipefail
cd "$(dirname "$0")/../.."
cases=${1:-100000} seed=${2:-0} thread_cases=${3:-2000}
started=$SECONDS

compiler=${CXX:-c++}
machine=$(uname -m) shared='' library=libasan.so
if "$compiler" --version | grep -qi clang; then
  shared=-shared-libasan library=libclang_rt.asan-$machine.so  # Python is not built with it
fi
pybind11=$(python -m pybind11 --cmakedir)
for preset in sanitize tsan; do
  cmake --preset "$preset" -G Ninja -Dpybind11_DIR="$pybind11" \
    -DPython_EXECUTABLE="$(command -v python)" -DCMAKE_CXX_COMPILER="$compiler" \
    -DCMAKE_MODULE_LINKER_FLAGS="$shared" > /dev/null
done
cmake --build build/sanitize --target _core --parallel "${JOBS:-2}"
cmake --build build/tsan --target fuzz_threads --parallel "${JOBS:-2}"
core=$(echo build/sanitize/_core*.so)

# The sanitizer's library comes before all others; and libstdc++ beside it, so that exceptions are
# seen to be thrown.
preload=$("$compiler" -print-file-name="$library"):$("$compiler" -print-file-name=libstdc++.so)
export PYTHONPATH=python${PYTHONPATH:+:$PYTHONPATH} PYTHONMALLOC=malloc
# Leaks are not looked for at the end: the interpreter leaves much of its own.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_malloc_fill_size=268435456:malloc_fill_byte=255
export UBSAN_OPTIONS=print_stacktrace=1

echo "== $cases cases, address and undefined behaviour"
python tests/fuzz/fuzz_core.py --cases "$cases" --seed "$seed" --core "$core" --preload "$preload"
echo "== the end of the interpreter"
python tests/fuzz/fuzz_lifetimes.py --calls 0 --exits 10 --core "$core" --preload "$preload"
echo "== threads"
# Without randomised addresses: the sanitizer needs its own places.
TSAN_OPTIONS=halt_on_error=1 setarch -R build/tsan/fuzz_threads "$thread_cases" "$seed"
echo "== memory, of the ordinary extension"
env -u ASAN_OPTIONS -u PYTHONMALLOC python tests/fuzz/fuzz_lifetimes.py --exits 0 --calls 100000
echo "fuzzed: $cases calls and $thread_cases cases of threads, seed $seed, no failure," \
  "$((SECONDS - started)) s"
