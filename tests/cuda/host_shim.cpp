// Fibres or threads behind host_shim.h. Both share the meeting points: a thread that arrives before
// the last one parks; the last runs the collective and releases the others.

#undef _FORTIFY_SOURCE  // it takes a jump between stacks for an error

#include "host_shim.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#if defined(SHIM_THREADS)
#include <condition_variable>
#include <mutex>
#include <thread>
#else
#include <ucontext.h>
#endif

namespace shim {
namespace {

constexpr unsigned kWarp = 32;

enum class Wait { kNone, kBlock, kWarp };

struct Thread {
  Position position;
  unsigned index;  // in the block
  bool returned = false;
  Wait wait = Wait::kNone;
  Site site{};
  unsigned mask = 0;
  void* record = nullptr;
#if defined(SHIM_THREADS)
  std::condition_variable released;
#else
  ucontext_t context;
  jmp_buf place;  // once it has run
  bool has_run;
#endif
};

std::vector<std::unique_ptr<Thread>> threads;  // of the block that runs
unsigned num_threads, num_returned, num_at_block, num_parked;
std::vector<char> dynamic_bytes;
cudaError_t last_error = cudaSuccess;
std::string last_message;
std::map<const void*, int> most_shared;  // of kernels that asked for more than usual

void give_up(const std::string& message);
void release(Thread& thread);

std::string describe(const Thread& thread) {
  const uint3& t = thread.position.thread;
  const uint3& b = thread.position.block;
  char text[512];
  if (thread.returned) {
    snprintf(text, sizeof(text), "thread (%u,%u,%u) has returned", t.x, t.y, t.z);
  } else {
    snprintf(text, sizeof(text), "thread (%u,%u,%u) of block (%u,%u,%u) waits for its %s at %s:%d",
             t.x, t.y, t.z, b.x, b.y, b.z, thread.wait == Wait::kBlock ? "block" : "warp",
             thread.site.file, thread.site.line);
  }
  return text;
}

bool same(Site a, Site b) { return a.line == b.line && strcmp(a.file, b.file) == 0; }

// Nobody can go on: the first thread and one that waits elsewhere, or has returned, say why.
void report_divergence(const char* what) {
  const Thread* first = nullptr;
  for (unsigned t = 0; t < num_threads && first == nullptr; ++t) {
    if (threads[t]->wait != Wait::kNone) first = threads[t].get();
  }
  const Thread* other = nullptr;
  for (unsigned t = 0; t < num_threads && other == nullptr; ++t) {
    const Thread& thread = *threads[t];
    if (thread.returned || thread.wait != first->wait || !same(thread.site, first->site)) {
      other = &thread;
    }
  }
  give_up(std::string(what) + ": " + describe(*first) +
          (other == nullptr ? std::string() : "; " + describe(*other)));
}

void release_all(unsigned begin, unsigned end, unsigned mask, Collective run) {
  void* records[1024] = {};
  for (unsigned t = begin; t < end; ++t) {
    if (!threads[t]->returned && (mask == 0 || mask >> (t - begin) & 1)) {
      records[t - begin] = threads[t]->record;
    }
  }
  if (run != nullptr) run(records, end - begin);
  for (unsigned t = begin; t < end; ++t) {
    Thread& thread = *threads[t];
    if (thread.returned || !(mask == 0 || mask >> (t - begin) & 1)) continue;
    thread.wait = Wait::kNone;
    --num_parked;
    release(thread);
  }
}

// The collectives of the threads that wait, by their first thread.
std::vector<Collective> collectives(1024);

uint64_t num_barriers = 0;

void finish_block_if_met() {
  if (num_at_block == 0 || num_at_block + num_returned < num_threads) return;
  const Thread* first = nullptr;
  for (unsigned t = 0; t < num_threads; ++t) {
    const Thread& thread = *threads[t];
    if (thread.returned) continue;
    if (first == nullptr) first = &thread;
    if (!same(first->site, thread.site)) return report_divergence("divergent barrier");
  }
  num_at_block = 0;
  ++num_barriers;
  release_all(0, num_threads, 0, collectives[first->index]);
}

void finish_warp_if_met(const Thread& thread) {
  const unsigned begin = thread.index / kWarp * kWarp, end = min(begin + kWarp, num_threads);
  for (unsigned t = begin; t < end; ++t) {
    const Thread& other = *threads[t];
    if (!(thread.mask >> (t - begin) & 1) || other.returned) continue;
    if (other.wait != Wait::kWarp || other.mask != thread.mask) return;
    if (!same(other.site, thread.site)) return report_divergence("divergent warp operation");
  }
  release_all(begin, end, thread.mask, collectives[thread.index]);
}

void thread_returned(Thread& self) {
  self.returned = true;
  ++num_returned;
  finish_block_if_met();
  const unsigned begin = self.index / kWarp * kWarp, end = min(begin + kWarp, num_threads);
  for (unsigned t = begin; t < end; ++t) {
    Thread& other = *threads[t];
    if (other.wait == Wait::kWarp && other.mask >> (self.index - begin) & 1) {
      finish_warp_if_met(other);
    }
  }
}

void prepare_block(dim3 grid, dim3 block, uint3 place, size_t shared_bytes) {
  num_threads = block.x * block.y * block.z;
  num_returned = num_at_block = num_parked = 0;
  dynamic_bytes = std::vector<char>(shared_bytes, static_cast<char>(0xff));
  while (threads.size() < num_threads) threads.push_back(std::make_unique<Thread>());
  for (unsigned t = 0; t < num_threads; ++t) {
    Thread& thread = *threads[t];
    const uint3 index{t % block.x, t / block.x % block.y, t / (block.x * block.y)};
    thread.position = {index, place, block, grid};
    thread.index = t;
    thread.returned = false;
    thread.wait = Wait::kNone;
  }
}

void run_block(const std::function<void()>& kernel);

}  // namespace

// -- fibres or threads ---------------------------------------------------------------

#if defined(SHIM_THREADS)

namespace {

std::mutex mutex;  // of everything above while threads run
thread_local Thread* current = nullptr;

// Threads cannot be abandoned as fibres can.
void give_up(const std::string& message) {
  fprintf(stderr, "%s\n", message.c_str());
  fflush(stderr);
  _Exit(3);
}

void release(Thread& thread) { thread.released.notify_one(); }

void check_that_someone_runs() {
  if (num_parked > 0 && num_parked + num_returned == num_threads) report_divergence("deadlock");
}

void wait_at(Wait wait, Site site, unsigned mask, void* record, Collective run) {
  Thread& self = *current;
  std::unique_lock<std::mutex> lock(mutex);
  self.wait = wait;
  self.site = site;
  self.mask = mask;
  self.record = record;
  collectives[self.index] = run;
  ++num_parked;
  if (wait == Wait::kBlock) {
    ++num_at_block;
    finish_block_if_met();
  } else {
    finish_warp_if_met(self);
  }
  if (self.wait != Wait::kNone) check_that_someone_runs();
  while (self.wait != Wait::kNone) self.released.wait(lock);
}

// The threads of all blocks, one after the other: to make them anew takes longer than they run.
struct Pool {
  std::vector<std::thread> workers;
  std::condition_variable begin, end;
  const std::function<void()>* kernel = nullptr;
  uint64_t generation = 0;
  unsigned size = 0, num_left = 0;
  bool is_over = false;

  void work(unsigned index, uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      begin.wait(lock, [&] { return is_over || generation != seen; });
      if (is_over) return;
      seen = generation;
      if (index >= size) continue;
      current = threads[index].get();
      lock.unlock();
      (*kernel)();
      lock.lock();
      thread_returned(*current);
      check_that_someone_runs();
      if (--num_left == 0) end.notify_one();
    }
  }

  void run(const std::function<void()>& block) {
    std::unique_lock<std::mutex> lock(mutex);
    while (workers.size() < num_threads) {
      workers.emplace_back(&Pool::work, this, static_cast<unsigned>(workers.size()), generation);
    }
    kernel = &block;
    size = num_left = num_threads;
    ++generation;
    begin.notify_all();
    end.wait(lock, [&] { return num_left == 0; });
  }

  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      is_over = true;
    }
    begin.notify_all();
    for (std::thread& worker : workers) worker.join();
  }
};

void run_block(const std::function<void()>& kernel) {
  static Pool pool;
  pool.run(kernel);
}

}  // namespace

const Position& position() { return current->position; }
unsigned lane() { return current->index % kWarp; }

#else

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 64 << 10;

ucontext_t launcher;
Thread* current = nullptr;
const std::function<void()>* current_kernel = nullptr;
bool given_up = false;

// A stack that ends in a page nobody may touch.
char* make_stack() {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  mprotect(memory, kGuardBytes, PROT_NONE);
  return static_cast<char*>(memory) + kGuardBytes;
}

// The fibres that have not returned are left as they are; nothing on their stacks needs a
// destructor.
void give_up(const std::string& message) {
  last_error = cudaErrorLaunchFailure;
  last_message = message;
  given_up = true;
  setcontext(&launcher);
}

void release(Thread&) {}

// From one fibre to another. swapcontext() would do; it also saves the mask of signals, a call of
// the system, and takes most of the time of a test. A sanitizer wants to know of every stack.
void switch_to(Thread& self, Thread& next) {
  current = &next;
#if defined(__SANITIZE_ADDRESS__)
  swapcontext(&self.context, &next.context);
#else
  self.has_run = true;
  if (_setjmp(self.place) != 0) return;
  if (next.has_run) _longjmp(next.place, 1);
  setcontext(&next.context);
#endif
}

// Hands over to the next fibre that can run, in turn; to the launcher when all have returned.
void hand_over(Thread& self) {
  for (unsigned step = 1; step <= num_threads; ++step) {
    Thread& next = *threads[(self.index + step) % num_threads];
    if (next.returned || next.wait != Wait::kNone) continue;
    if (&next == &self) return;
    switch_to(self, next);
    return;
  }
  if (num_returned < num_threads) report_divergence("deadlock");
  setcontext(&launcher);
}

void wait_at(Wait wait, Site site, unsigned mask, void* record, Collective run) {
  Thread& self = *current;
  self.wait = wait;
  self.site = site;
  self.mask = mask;
  self.record = record;
  collectives[self.index] = run;
  ++num_parked;
  if (wait == Wait::kBlock) {
    ++num_at_block;
    finish_block_if_met();
  } else {
    finish_warp_if_met(self);
  }
  if (self.wait != Wait::kNone) hand_over(self);
}

void run_fibre() {
  (*current_kernel)();
  thread_returned(*current);
  hand_over(*current);
}

void run_block(const std::function<void()>& kernel) {
  static std::vector<char*> stacks;  // kept: a launch has thousands of blocks
  while (stacks.size() < num_threads) stacks.push_back(make_stack());
  for (unsigned t = 0; t < num_threads; ++t) {
    ucontext_t& context = threads[t]->context;
    getcontext(&context);
    threads[t]->has_run = false;
    context.uc_stack.ss_sp = stacks[t];
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, run_fibre, 0);
  }
  current_kernel = &kernel;
  current = threads[0].get();
  swapcontext(&launcher, &current->context);
}

}  // namespace

const Position& position() { return current->position; }
unsigned lane() { return current->index % kWarp; }

#endif

void* dynamic_shared() { return dynamic_bytes.data(); }

void meet_in_block(Site site, void* record, Collective run) {
  wait_at(Wait::kBlock, site, 0, record, run);
}

void meet_in_warp(Site site, unsigned mask, void* record, Collective run) {
  if (!(mask >> lane() & 1)) give_up("a lane outside the mask of its warp operation");
  wait_at(Wait::kWarp, site, mask, record, run);
}

namespace {

struct Claim {
  bool claim;
  unsigned result;
};

}  // namespace

unsigned ballot(Site site, unsigned mask, bool claim) {
  Claim own{claim, 0};
  meet_in_warp(site, mask, &own, [](void* const* records, unsigned count) {
    unsigned votes = 0;
    for (unsigned l = 0; l < count; ++l) {
      if (records[l] != nullptr && static_cast<Claim*>(records[l])->claim) votes |= 1u << l;
    }
    for (unsigned l = 0; l < count; ++l) {
      if (records[l] != nullptr) static_cast<Claim*>(records[l])->result = votes;
    }
  });
  return own.result;
}

int count_in_block(Site site, bool claim) {
  Claim own{claim, 0};
  meet_in_block(site, &own, [](void* const* records, unsigned count) {
    unsigned claims = 0;
    for (unsigned t = 0; t < count; ++t) {
      claims += records[t] != nullptr && static_cast<Claim*>(records[t])->claim;
    }
    for (unsigned t = 0; t < count; ++t) {
      if (records[t] != nullptr) static_cast<Claim*>(records[t])->result = claims;
    }
  });
  return static_cast<int>(own.result);
}

// -- tensor cores --------------------------------------------------------------------

unsigned to_half(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  memcpy(&bits, &half, sizeof(bits));
  return bits;
}

float from_half(unsigned bits) {
  const uint16_t low = static_cast<uint16_t>(bits);
  _Float16 half;
  memcpy(&half, &low, sizeof(half));
  return static_cast<float>(half);
}

namespace {

struct Fragments {
  const unsigned* fragment;
  float* d;
};

float half_of(unsigned word, int which) { return from_half(which == 0 ? word : word >> 16); }

// The sum of eight products and c, cut off.
double truncated_sum(const float* a, const float* b, double c) {
  double terms[9], largest = 0;
  for (int k = 0; k < 8; ++k) terms[k] = static_cast<double>(a[k]) * b[k];
  terms[8] = c;
  for (double term : terms) largest = max(largest, fabs(term));
  if (largest == 0) return 0;
  const double unit = ldexp(1.0, ilogb(largest) - 23);
  double sum = 0;
  for (double term : terms) sum += trunc(term / unit) * unit;
  if (sum == 0) return 0;
  const double last = ldexp(1.0, ilogb(sum) - 23);
  return trunc(sum / last) * last;
}

uint64_t num_tensor_products = 0;

// Group and place of a lane: element (r, k) of a is in the lane 4 (r % 8) + k % 8 / 2, register
// r / 8 + 2 (k / 8), half k % 2; element (k, n) of b in the lane 4 n + k % 8 / 2, register k / 8.
void run_multiply_add(void* const* records, unsigned) {
  static const bool truncates = [] {
    const char* text = getenv("NOISYFLOW_SHIM_MMA");
    return text != nullptr && strcmp(text, "truncate") == 0;
  }();
  ++num_tensor_products;
  float a[16][16], b[8][16];
  const auto lane_at = [&](int l) { return static_cast<Fragments*>(records[l]); };
  for (int k = 0; k < 16; ++k) {
    for (int r = 0; r < 16; ++r) {
      const unsigned* words = lane_at(r % 8 * 4 + k % 8 / 2)->fragment;
      a[r][k] = half_of(words[r / 8 + k / 8 * 2], k % 2);
    }
    for (int n = 0; n < 8; ++n) {
      b[n][k] = half_of(lane_at(n * 4 + k % 8 / 2)->fragment[4 + k / 8], k % 2);
    }
  }
  for (int l = 0; l < 32; ++l) {
    Fragments* own = lane_at(l);
    for (int i = 0; i < 4; ++i) {
      const float* row = a[l / 4 + i / 2 * 8];
      const float* column = b[l % 4 * 2 + i % 2];
      double sum = own->d[i];
      if (truncates) {
        sum = truncated_sum(row + 8, column + 8, truncated_sum(row, column, sum));
      } else {
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(row[k]) * column[k];
      }
      own->d[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void multiply_add_16x8x16(float (&d)[4], const unsigned (&fragment)[6]) {
  Fragments own{fragment, d};
  meet_in_warp({__FILE__, __LINE__}, ~0u, &own, run_multiply_add);
}

// -- launches ------------------------------------------------------------------------

namespace {
constexpr int kUsualShared = 48 << 10, kMostShared = 227 << 10;  // bytes for a block, as on an H200
}  // namespace

bool begin_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const auto found = most_shared.find(kernel);
  const int most = found == most_shared.end() ? kUsualShared : found->second;
  const uint64_t size = static_cast<uint64_t>(block.x) * block.y * block.z;
  const bool ok = size > 0 && size <= 1024 && block.z <= 64 && grid.x > 0 && grid.y > 0 &&
                  grid.z > 0 && grid.x < 1u << 31 && grid.y < 1 << 16 && grid.z < 1 << 16;
  if (!ok) {
    last_error = cudaErrorInvalidConfiguration;
  } else if (shared_bytes > static_cast<size_t>(most)) {
    last_error = cudaErrorInvalidValue;
  }
  return ok && shared_bytes <= static_cast<size_t>(most);
}

void run_blocks(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        prepare_block(grid, block, {x, y, z}, shared_bytes);
        run_block(kernel);
#if !defined(SHIM_THREADS)
        if (given_up) {
          given_up = false;
          return;
        }
#endif
      }
    }
  }
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > kMostShared) return last_error = cudaErrorInvalidValue;
  most_shared[kernel] = value;
  return cudaSuccess;
}

}  // namespace shim

// How often a block met so far, where what is skipped is not met for; and how often a warp
// multiplied matrices. For tests, by ctypes.
extern "C" {
__attribute__((visibility("default"))) uint64_t shim_num_barriers() { return shim::num_barriers; }
__attribute__((visibility("default"))) uint64_t shim_num_tensor_products() {
  return shim::num_tensor_products;
}
}

// -- runtime -------------------------------------------------------------------------

cudaError_t cudaGetLastError() {
  const cudaError_t error = shim::last_error;
  shim::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return shim::last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return shim::last_message.c_str();
    default:
      return "an error that the host shim does not know";
  }
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaErrorUnknown";
  }
}

static int num_multiprocessors() {
  const char* text = getenv("NOISYFLOW_SHIM_MULTIPROCESSORS");
  return text == nullptr ? 132 : atoi(text);
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : shim::last_error = cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return shim::last_error = cudaErrorInvalidDevice;
  *properties = {};
  snprintf(properties->name, sizeof(properties->name), "host shim");
  properties->totalGlobalMem = size_t{1} << 30;
  properties->sharedMemPerBlock = shim::kUsualShared;
  properties->sharedMemPerBlockOptin = shim::kMostShared;
  properties->major = 9;
  properties->multiProcessorCount = num_multiprocessors();
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return shim::last_error = cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = shim::kUsualShared;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = num_multiprocessors();
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = shim::kMostShared;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaMemsetAsync(void* address, int byte, size_t bytes, cudaStream_t) {
  memset(address, byte, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  memmove(to, from, bytes);
  return cudaSuccess;
}
