// What blocks tell each other through global memory, and loads and stores with a cache policy.
#pragma once

#include <cstdint>

namespace bertadam::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }

// A word that carries its epoch (core/step_args.h) needs no order with anything else.
__device__ __forceinline__ uint64_t load_relaxed(const uint64_t* address) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(address) : "memory");
  return word;
}

__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* address) {
  uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
  return word;
}

__device__ __forceinline__ void store_relaxed(uint64_t* address, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(word) : "memory");
}

// Releases this thread's writes and acquires those of everyone who arrived before.
__device__ __forceinline__ uint32_t add_one(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// True for whoever brings the `n`-th arrival; leaves the counter at zero.
__device__ __forceinline__ bool arrives_last(uint32_t* arrivals, uint32_t n) {
  if (n == 1) return true;
  if (add_one(arrivals) + 1 < n) return false;
  *arrivals = 0;
  return true;
}

// How long L2 should keep a line that is read: as long as it can. At equal traffic this was worth 2.5 % of a step on an
// H200.
__device__ __forceinline__ uint64_t keep_in_l2() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void load4(float (&x)[4], const float* address) {
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.f32 {%0, %1, %2, %3}, [%4], %5;"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(address), "l"(keep_in_l2()));
}

__device__ __forceinline__ void store4(float* address, const float (&x)[4]) {
  *reinterpret_cast<float4*>(address) = make_float4(x[0], x[1], x[2], x[3]);
}

}  // namespace bertadam::cuda
