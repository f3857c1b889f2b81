// The words of CUDA C++ that the kernels use, for a host compiler; see fibers.h.
#pragma once

#include <math.h>
#include <sched.h>

#include <algorithm>
#include <cstring>

#include "fibers.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local  // a block has a thread of the host to itself

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_dim
#define gridDim emulation::grid_dim

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

using std::max;
using std::min;

namespace emulation {

inline void yield() { block->yield(); }

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}
template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

template <class T>
T shuffle(T value, uint32_t lane, const char* file, int line) {
  return from_word<T>(block->exchange(to_word(value), file, line)[lane % 32]);
}
inline uint32_t ballot(bool vote, const char* file, int line) {
  const uint64_t* const votes = block->exchange(vote, file, line);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<uint32_t>(votes[lane]) << lane;
  return bits;
}

}  // namespace emulation

#define __shfl_sync(mask, value, lane) emulation::shuffle(value, static_cast<uint32_t>(lane), __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, distance) \
  emulation::shuffle(value, threadIdx.x % 32 ^ static_cast<uint32_t>(distance), __FILE__, __LINE__)
#define __ballot_sync(mask, vote) emulation::ballot(vote, __FILE__, __LINE__)
#define __all_sync(mask, vote) (emulation::ballot(vote, __FILE__, __LINE__) == 0xffffffffu)
#define __any_sync(mask, vote) (emulation::ballot(vote, __FILE__, __LINE__) != 0)
#define __syncwarp() static_cast<void>(emulation::ballot(true, __FILE__, __LINE__))
#define __syncthreads() emulation::block->meet_all()
#define __threadfence() static_cast<void>(0)  // what it orders here is in order already

inline int __ffs(uint32_t bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline long long __double_as_longlong(double x) { return emulation::from_word<long long>(emulation::to_word(x)); }
inline double __longlong_as_double(long long x) { return emulation::from_word<double>(emulation::to_word(x)); }
template <class T>
T __ldcg(const T* address) {
  return *const_cast<const volatile T*>(address);
}

template <class T>
T atomicAdd(T* address, T value) {
  emulation::yield();
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline uint32_t atomicCAS(uint32_t* address, uint32_t expected, uint32_t desired) {
  emulation::yield();
  __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// Time passes in leaps, so that a block loses patience sooner or later.
inline long long clock64() {
  static thread_local long long now = 0;
  return now += emulation::block->random(4000);
}
