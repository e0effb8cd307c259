// What this CPU can do at most: vector instructions per nanosecond and per cycle, by kind.
//
// Compiled and run by bench_ports.py with the flags of one CPU target, so that vectors are as wide
// as the kernel's. Every loop is the instruction named and nothing else (inline assembly, so that
// no compiler merges or moves any). A cycle is one step of a chain of dependent additions, timed
// beside each loop. Prints JSON, one object for float and one for double.

#define NOISYFLOW_TARGET bench
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include "../csrc/core/exp2_poly.h"

namespace noisyflow {
inline namespace NOISYFLOW_TARGET {

#if defined(__AVX512F__)
#define VECTOR_REGISTER "v"
constexpr const char* kTarget = "avx512";
#else
#define VECTOR_REGISTER "x"
#if defined(__AVX2__)
constexpr const char* kTarget = "avx2";
#else
constexpr const char* kTarget = "baseline";
#endif
#endif

// 12 results in flight hide every latency that occurs here: at most 6 cycles at 2 a cycle.
constexpr int kInFlight = 12;
constexpr int kSteps = 4000;

double now() {
  using clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// Runs step(a, x, y, center) for every result a in flight, kSteps times; r is for its own use.
// Unrolled by the language: of an array in an unrolled loop, some stays in memory.
template <class T, class Step, size_t... k>
__attribute__((noinline)) void repeat(Step step, std::index_sequence<k...>) {
  static T centers[kInFlight];
  Vec<T> a[kInFlight] = {((void)k, broadcast<T>(T(1)))...};
  Vec<T> x = broadcast<T>(T(1)), y = broadcast<T>(T(0.25));
  for (int i = 0; i < kSteps; ++i) (step(a[k], x, y, centers[k]), ...);
}

// FLOAT and DOUBLE are the same instructions for the two types, with the operands
// %0 = a, %1 = r (a spare register), %2 = x, %3 = y, %4 = a center in memory.
#define LOOP(NAME, FLOAT, DOUBLE)                                                    \
  template <class T>                                                                 \
  void NAME() {                                                                      \
    repeat<T>(                                                                       \
        [](Vec<T>& a, const Vec<T>& x, const Vec<T>& y, const T& center) {           \
          Vec<T> r;                                                                  \
          if constexpr (sizeof(T) == 4)                                              \
            __asm__ volatile(FLOAT                                                   \
                             : "+" VECTOR_REGISTER(a), "=&" VECTOR_REGISTER(r)       \
                             : VECTOR_REGISTER(x), VECTOR_REGISTER(y), "m"(center)); \
          else                                                                       \
            __asm__ volatile(DOUBLE                                                  \
                             : "+" VECTOR_REGISTER(a), "=&" VECTOR_REGISTER(r)       \
                             : VECTOR_REGISTER(x), VECTOR_REGISTER(y), "m"(center)); \
        },                                                                           \
        std::make_index_sequence<kInFlight>());                                      \
  }

#if defined(__AVX2__)
LOOP(add, "vaddps %2, %3, %1", "vaddpd %2, %3, %1")
LOOP(mul, "vmulps %2, %3, %1", "vmulpd %2, %3, %1")
LOOP(min, "vminps %2, %3, %1", "vminpd %2, %3, %1")
LOOP(shift, "vpslld $23, %2, %1", "vpsllq $52, %2, %1")
LOOP(fma, "vfmadd231ps %2, %3, %0", "vfmadd231pd %2, %3, %0")
// A difference, its square added: what every dimension of a pair costs.
LOOP(sub_fma, "vsubps %2, %3, %1\n\tvfmadd231ps %1, %1, %0",
     "vsubpd %2, %3, %1\n\tvfmadd231pd %1, %1, %0")
// The same with the center read from memory and broadcast, as in the kernel.
#if defined(__AVX512F__)
LOOP(sub_fma_broadcast, "vsubps %4%{1to16%}, %2, %1\n\tvfmadd231ps %1, %1, %0",
     "vsubpd %4%{1to8%}, %2, %1\n\tvfmadd231pd %1, %1, %0")
LOOP(scalef, "vscalefps %2, %3, %1", "vscalefpd %2, %3, %1")
LOOP(reduce, "vreduceps $1, %2, %1", "vreducepd $1, %2, %1")
LOOP(permute, "vpermt2ps %2, %3, %0", "vpermt2pd %2, %3, %0")  // a table in two registers
#else
LOOP(sub_fma_broadcast, "vbroadcastss %4, %1\n\tvsubps %1, %2, %1\n\tvfmadd231ps %1, %1, %0",
     "vbroadcastsd %4, %1\n\tvsubpd %1, %2, %1\n\tvfmadd231pd %1, %1, %0")
#endif
#elif defined(__SSE2__)
LOOP(add, "addps %2, %0", "addpd %2, %0")
LOOP(mul, "mulps %2, %0", "mulpd %2, %0")
LOOP(min, "minps %2, %0", "minpd %2, %0")
LOOP(shift, "pslld $23, %0", "psllq $52, %0")
LOOP(sub_mul_add, "movaps %2, %1\n\tsubps %3, %1\n\tmulps %1, %1\n\taddps %1, %0",
     "movapd %2, %1\n\tsubpd %3, %1\n\tmulpd %1, %1\n\taddpd %1, %0")
#endif

// The exponential of the kernel, on its own: 12 vectors at once (6 where registers are fewer),
// read from L1.
template <class T>
struct Exponentials {
  static constexpr int kAtOnce = kVectorBytes == 64 ? 12 : 6;
  static constexpr int kVectors = 240;
  alignas(64) T distances[kVectors * kLanes<T>];
  Vec<T> sums[2];
  Exponentials() {
    for (int i = 0; i < kVectors * kLanes<T>; ++i)
      distances[i] = T(20) * T(i) / T(sizeof distances);
  }

  __attribute__((noinline)) void all(T scale) {
    Vec<T> acc2[2] = {Vec<T>{}, Vec<T>{}};
    for (int i = 0; i < kVectors; i += kAtOnce) {
      Vec<T> s[kAtOnce];
#pragma GCC unroll 16
      for (int k = 0; k < kAtOnce; ++k) s[k] = load<T>(distances + (i + k) * kLanes<T>);
      add_exp2<T, kAtOnce, 2>(s, scale, acc2);
    }
    sums[0] = acc2[0];
    sums[1] = acc2[1];
  }
};

template <class T>
void exp2() {
  static Exponentials<T> vectors;
  const FlushDenormals flush;
  for (int r = 0; r < kSteps * kInFlight / Exponentials<T>::kVectors; ++r) vectors.all(T(1));
}

// Seconds of one dependent addition. Registers, not constants: those some CPUs add for nothing.
double cycle() {
#if defined(__x86_64__)
  constexpr int kChain = 20000;
  uint64_t a = 1, b = 3;
  const double start = now();
  for (int i = 0; i < kChain / 20; ++i)
    __asm__ volatile(".rept 20\n\tadd %1, %0\n\t.endr" : "+r"(a) : "r"(b) : "cc");
  return (now() - start) / kChain;
#else
  return 0;
#endif
}

// Best of many short runs: a limit is what the machine reaches undisturbed. Cycles by the chains
// beside the fastest runs: the clock may change in between.
void measure(const char* name, int instructions, void (*loop)(), int rounds) {
  std::vector<std::pair<double, double>> runs;  // seconds per step, per cycle
  for (int r = 0; r < rounds; ++r) {
    const double start = now();
    loop();
    const double seconds = (now() - start) / (double(kSteps) * kInFlight);
    runs.push_back({seconds, cycle() / seconds});
  }
  std::sort(runs.begin(), runs.end());
  std::vector<double> per_cycle;
  for (int r = 0; r < rounds / 10; ++r) per_cycle.push_back(runs[size_t(r)].second);
  std::sort(per_cycle.begin(), per_cycle.end());
  std::printf("    \"%s\": {\"per_ns\": %.6g, \"per_cycle\": %.6g},\n", name,
              instructions / runs[0].first * 1e-9, instructions * per_cycle[per_cycle.size() / 2]);
}

template <class T>
void measure_all(const char* type, int rounds) {
  std::printf("  \"%s\": {\n    \"lanes\": %d,\n    \"degree\": %d,\n", type, kLanes<T>,
              Exp2<T>::kDegree);
#if defined(__AVX2__) || defined(__SSE2__)
  measure("add", 1, add<T>, rounds);
  measure("mul", 1, mul<T>, rounds);
  measure("min", 1, min<T>, rounds);
  measure("shift", 1, shift<T>, rounds);
#if defined(__AVX2__)
  measure("fma", 1, fma<T>, rounds);
  measure("sub+fma", 2, sub_fma<T>, rounds);
  measure("sub+fma, broadcast", 2, sub_fma_broadcast<T>, rounds);
#else
  measure("sub+mul+add", 3, sub_mul_add<T>, rounds);
#endif
#if defined(__AVX512F__)
  measure("scalef", 1, scalef<T>, rounds);
  measure("reduce", 1, reduce<T>, rounds);
  measure("permute", 1, permute<T>, rounds);
#endif
#endif
  measure("exp2", 1, exp2<T>, rounds);
  double tick = 1;
  for (int r = 0; r < rounds; ++r) {
    tick = std::min(tick, cycle());
  }
  std::printf("    \"ns_per_cycle\": %.6g\n  }", tick * 1e9);
}

}  // namespace NOISYFLOW_TARGET
}  // namespace noisyflow

int main() {
  using namespace noisyflow;
  constexpr int kRounds = 200;  // of 50 microseconds or so each
  std::printf("{\n  \"target\": \"%s\",\n", kTarget);
  measure_all<float>("float32", kRounds);
  std::printf(",\n");
  measure_all<double>("float64", kRounds);
  std::printf("\n}\n");
}
