// Accesses to global memory that C++ has no words for, an instruction each.
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

// Counts arrivals and orders nothing: what is handed over carries its epoch.
__device__ __forceinline__ uint32_t add_one_relaxed(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// Releases this thread's writes and acquires those of everyone who arrived before.
__device__ __forceinline__ uint32_t add_one_ordered(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// Two words in one access.
struct WordPair {
  uint64_t words[2];
};

__device__ __forceinline__ WordPair load_relaxed(const WordPair* address) {
  WordPair x;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(x.words[0]), "=l"(x.words[1])
               : "l"(address)
               : "memory");
  return x;
}

__device__ __forceinline__ void store_relaxed(WordPair* address, const WordPair& x) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(address), "l"(x.words[0]), "l"(x.words[1])
               : "memory");
}

// One line.
__device__ __forceinline__ void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// How long L2 should keep a line that is read: as long as it can. At equal traffic this was worth 2.5 % of a step on an
// H200.
__device__ __forceinline__ uint64_t keep_in_l2() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void load_words(float (&x)[4], const void* address) {
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.f32 {%0, %1, %2, %3}, [%4], %5;"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(address), "l"(keep_in_l2()));
}

__device__ __forceinline__ void load_words(uint32_t (&x)[4], const void* address) {
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "l"(address), "l"(keep_in_l2()));
}

__device__ __forceinline__ void load_words(uint32_t (&x)[2], const void* address) {
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
               : "=r"(x[0]), "=r"(x[1])
               : "l"(address), "l"(keep_in_l2()));
}

__device__ __forceinline__ void store_words(void* address, const float (&x)[4]) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
}

__device__ __forceinline__ void store_words(void* address, const uint32_t (&x)[2]) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(x[0]), "r"(x[1]) : "memory");
}

}  // namespace bertadam::cuda
