// A litmus test of what blocks hand to each other, by the engine's own primitives (csrc/cuda/memory.cuh) and with the
// engine's protocol: words that carry their epoch, arrivals that order nothing, and the one ordered arrival at the end.
// Broken variants of the same protocol show that the test can see a fault.
#include <cuda_runtime.h>

#include <cstring>

#include "cuda/memory.cuh"

using namespace bertadam;
using namespace bertadam::cuda;

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kChildren = 32;              // warps of a family, from as many blocks as possible
constexpr uint32_t kRounds = 512;          // per launch
constexpr uint32_t kMostPolls = 1u << 22;  // some seconds

struct Outcomes {
  unsigned long long completed;  // rounds of a family that somebody came last in
  unsigned long long torn;       // doubles with one half of another round
  unsigned long long stale;      // doubles or words of the epoch before, or of no round at all
  unsigned long long unordered;  // plain memory that the ordered arrival should have ordered
  unsigned long long lost;       // words that never came
};

struct Memory {
  TaggedDouble* nodes;     // [family][round][child]
  uint32_t* arrivals;      // [family][round]
  uint64_t* coefficients;  // [family][round]
  uint32_t* plain;         // [round][block]
  uint32_t* shared;        // [round]: read by all blocks, then written by the last
  uint32_t* blocks_done;   // [round]
  Outcomes* outcomes;
};

// Both halves of a value tell round and epoch apart.
__device__ uint32_t mixed(uint32_t epoch, uint32_t id, uint32_t salt) {
  uint32_t x = epoch * 0x9e3779b9u ^ id * 0x85ebca6bu ^ salt;
  x ^= x >> 16;
  x *= 0x7feb352du;
  return x ^ x >> 15;
}
__device__ uint32_t low_half(uint32_t epoch, uint32_t id) { return mixed(epoch, id, 0x1234567u); }
__device__ uint32_t high_half(uint32_t epoch, uint32_t id) { return mixed(epoch, id, 0x89abcdefu); }
__device__ double value_of(uint32_t epoch, uint32_t id) {
  return __longlong_as_double(static_cast<long long>(uint64_t{high_half(epoch, id)} << 32 | low_half(epoch, id)));
}

// As norms.cuh has it: store, count, and let whoever came last look at the tags.
struct Tagged {
  __device__ static uint32_t leave(TaggedDouble* node, double x, uint32_t epoch, uint32_t* arrivals) {
    TaggedDouble::of(x, epoch).store(node);
    return add_one_relaxed(arrivals);
  }
  __device__ static bool is_complete(const TaggedDouble& x, uint32_t epoch) { return x.is_of(epoch); }
  template <class Work>
  __device__ static uint32_t work_and_arrive(const Work& work, uint32_t* counter) {
    work();
    __syncthreads();
    return threadIdx.x == 0 ? add_one_ordered(counter) : 0;
  }
};

// Arrives before it stores, after a pause and one half after the other, and believes what it reads.
struct Untagged {
  __device__ static uint32_t leave(TaggedDouble* node, double x, uint32_t epoch, uint32_t* arrivals) {
    const uint32_t before = add_one_relaxed(arrivals);
    const TaggedDouble tagged = TaggedDouble::of(x, epoch);
    pause();
    store_relaxed(&node->pair.words[0], tagged.pair.words[0]);
    pause();
    store_relaxed(&node->pair.words[1], tagged.pair.words[1]);
    return before;
  }
  __device__ static bool is_complete(const TaggedDouble&, uint32_t) { return true; }
  template <class Work>
  __device__ static uint32_t work_and_arrive(const Work& work, uint32_t* counter) {
    const uint32_t before = threadIdx.x == 0 ? add_one_relaxed(counter) : 0;
    if (threadIdx.x == kThreads - 1) pause();
    work();
    __syncthreads();
    return before;
  }

 private:
  // Another time at every call: were a block always slow, it would come last and find everything there.
  __device__ static void pause() { __nanosleep(static_cast<unsigned>((clock64() / 64 + blockIdx.x) % 4) * 1000); }
};

__device__ void check(const TaggedDouble& x, uint32_t epoch, uint32_t id, Outcomes* outcomes) {
  const auto bits = static_cast<uint64_t>(__double_as_longlong(x.value()));
  const bool low = static_cast<uint32_t>(bits) == low_half(epoch, id);
  const bool high = static_cast<uint32_t>(bits >> 32) == high_half(epoch, id);
  if (low != high) atomicAdd(&outcomes->torn, 1ull);
  if (!low && !high) atomicAdd(&outcomes->stale, 1ull);
}

// One warp's part in a round of its family: leave a value, sum up if last, then wait for the word that the last one
// publishes. False if something never came.
template <class Handover>
__device__ bool take_round(const Memory& memory, uint32_t place, uint32_t child, uint32_t epoch) {
  TaggedDouble* const nodes = memory.nodes + size_t{place} * kChildren;
  bool last = false;
  if (lane_id() == 0) {
    uint32_t* const arrivals = &memory.arrivals[place];
    const double x = value_of(epoch, place * kChildren + child);
    last = Handover::leave(nodes + child, x, epoch, arrivals) + 1 == kChildren;
    if (last) *arrivals = 0;
  }
  if (__shfl_sync(kFullWarp, last, 0)) {
    TaggedDouble x;
    uint32_t polls = 0;
    do {
      x = TaggedDouble::load(nodes + lane_id());
    } while (!Handover::is_complete(x, epoch) && ++polls < kMostPolls);
    if (polls == kMostPolls) atomicAdd(&memory.outcomes->lost, 1ull);
    check(x, epoch, place * kChildren + lane_id(), memory.outcomes);
    __syncwarp();
    if (lane_id() == 0) {
      atomicAdd(&memory.outcomes->completed, 1ull);
      store_relaxed(&memory.coefficients[place], tag(epoch, low_half(epoch, place)));
    }
  }
  uint64_t word;
  uint32_t polls = 0;
  do {
    word = load_relaxed(&memory.coefficients[place]);
  } while (!__all_sync(kFullWarp, has_epoch(word, epoch)) && ++polls < kMostPolls);
  if (polls == kMostPolls) {
    if (lane_id() == 0) atomicAdd(&memory.outcomes->lost, 1ull);
    return false;
  }
  if (payload(word) != low_half(epoch, place)) atomicAdd(&memory.outcomes->stale, 1ull);
  return true;
}

template <class Handover>
__global__ void __launch_bounds__(kThreads) hand_over(Memory memory, uint32_t n_families, uint32_t epoch) {
  // Neighbouring warps are of different families.
  const uint32_t warp = blockIdx.x * kWarps + threadIdx.x / 32;
  const uint32_t family = warp % n_families;
  const uint32_t child = warp / n_families;
  if (child >= kChildren) return;
  for (uint32_t round = 0; round < kRounds; ++round) {
    if (!take_round<Handover>(memory, family * kRounds + round, child, epoch)) return;
  }
}

__device__ void load_into_l1(const uint32_t* address) {
  [[maybe_unused]] uint32_t word;
  asm volatile("ld.global.ca.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
}

// What the end of a step relies on: whoever comes last sees what the others wrote, also in lines that it had read
// before, and nobody else sees what it writes afterwards.
template <class Handover>
__global__ void __launch_bounds__(kThreads) finish(Memory memory, uint32_t epoch) {
  __shared__ bool is_last;
  for (uint32_t round = 0; round < kRounds; ++round) {
    uint32_t* const plain = memory.plain + size_t{round} * gridDim.x;
    for (uint32_t i = threadIdx.x; i < gridDim.x; i += kThreads) load_into_l1(plain + i);
    // By a thread of the last warp, which nothing but the block's barrier holds together with thread 0.
    const auto work = [&] {
      if (threadIdx.x != kThreads - 1) return;
      if (memory.shared[round] != epoch - 1) atomicAdd(&memory.outcomes->unordered, 1ull);
      plain[blockIdx.x] = epoch;
    };
    const uint32_t before = Handover::work_and_arrive(work, &memory.blocks_done[round]);
    if (threadIdx.x == 0) is_last = before + 1 == gridDim.x;
    __syncthreads();
    if (is_last) {
      for (uint32_t i = threadIdx.x; i < gridDim.x; i += kThreads) {
        if (plain[i] != epoch) atomicAdd(&memory.outcomes->unordered, 1ull);
      }
      if (threadIdx.x == 0) {
        memory.shared[round] = epoch;
        memory.blocks_done[round] = 0;
        atomicAdd(&memory.outcomes->completed, 1ull);
      }
    }
    __syncthreads();
  }
}

#define RETURN_IF_ERROR(call)                                   \
  do {                                                          \
    const cudaError_t error_ = (call);                          \
    if (error_ != cudaSuccess) return static_cast<int>(error_); \
  } while (false)

// Zeroed memory of the device, to be freed when the process ends.
template <class T>
cudaError_t allocate(T** memory, size_t n) {
  const cudaError_t error = cudaMalloc(memory, n * sizeof(T));
  return error == cudaSuccess ? cudaMemset(*memory, 0, n * sizeof(T)) : error;
}

template <class Handover>
int run(int n_launches, unsigned long long* counts, unsigned long long* n_rounds) {
  int device = 0;
  int n_sms = 0;
  RETURN_IF_ERROR(cudaGetDevice(&device));
  RETURN_IF_ERROR(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
  auto n_blocks = static_cast<uint32_t>(n_sms) * 4;
  uint32_t n_families = n_blocks * kWarps / kChildren;
  const size_t n_places = size_t{n_families} * kRounds;
  Memory memory{};
  RETURN_IF_ERROR(allocate(&memory.nodes, n_places * kChildren));
  RETURN_IF_ERROR(allocate(&memory.arrivals, n_places));
  RETURN_IF_ERROR(allocate(&memory.coefficients, n_places));
  RETURN_IF_ERROR(allocate(&memory.plain, size_t{n_blocks} * kRounds));
  RETURN_IF_ERROR(allocate(&memory.shared, kRounds));
  RETURN_IF_ERROR(allocate(&memory.blocks_done, kRounds));
  RETURN_IF_ERROR(allocate(&memory.outcomes, 1));
  Outcomes outcomes{};
  for (uint32_t epoch = 1; epoch <= static_cast<uint32_t>(n_launches) && outcomes.lost == 0; ++epoch) {
    // Cooperative, so that all blocks are resident: they wait for each other.
    void* parameters[] = {&memory, &n_families, &epoch};
    RETURN_IF_ERROR(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(hand_over<Handover>), n_blocks, kThreads,
                                                parameters, 0, nullptr));
    finish<Handover><<<n_blocks, kThreads>>>(memory, epoch);
    RETURN_IF_ERROR(cudaGetLastError());
    RETURN_IF_ERROR(cudaMemcpy(&outcomes, memory.outcomes, sizeof(Outcomes), cudaMemcpyDeviceToHost));
  }
  std::memcpy(counts, &outcomes, sizeof(Outcomes));
  *n_rounds = static_cast<unsigned long long>(n_launches) * (n_places + kRounds);
  return 0;
}

}  // namespace

// `counts`: the five outcomes; `n_rounds`: how many rounds should be completed.
extern "C" int run_handover(int n_launches, unsigned long long* counts, unsigned long long* n_rounds) {
  return run<Tagged>(n_launches, counts, n_rounds);
}

extern "C" int run_broken_handover(int n_launches, unsigned long long* counts, unsigned long long* n_rounds) {
  return run<Untagged>(n_launches, counts, n_rounds);
}
