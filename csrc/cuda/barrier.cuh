// Barriers in shared memory, and copies to shared memory that complete on them.
#pragma once

#include <cstdint>

namespace bertadam::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// An mbarrier: a phase is over when all arrivals, and all bytes that were announced, are there.
class Barrier {
 public:
  __device__ void init(uint32_t n_arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(&word_)), "r"(n_arrivals) : "memory");
  }

  __device__ void arrive() {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(&word_))
                 : "memory");
  }

  // Whether the phase of this parity is over.
  __device__ bool is_over(uint32_t parity) {
    uint32_t done;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_address(&word_)), "r"(parity)
                 : "memory");
    return done != 0;
  }

  __device__ void wait(uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    // Suspends the warp for as long as the hardware sees fit.
    asm volatile(
        "{ .reg .pred p; again_%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again_%=; }" ::"r"(
            shared_address(&word_)),
        "r"(parity)
        : "memory");
#else
    while (!is_over(parity)) {
    }
#endif
  }

  // Waits for a phase that is over, for compute-sanitizer's synccheck: an arrival after a phase that nobody has waited
  // for is a fault to it.
  __device__ void see(uint32_t parity) { wait(parity); }

#if __CUDA_ARCH__ >= 900
  // Copies `bytes`, a multiple of 16 at aligned addresses; the present phase waits for them. L2 keeps the lines.
  __device__ void copy_bulk(void* target, const void* source, uint32_t bytes, uint64_t policy) {
    const uint32_t barrier = shared_address(&word_);
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
            "r"(shared_address(target)),
        "l"(source), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
  }
#endif

 private:
  uint64_t word_;
};

// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Copies by one thread, of 16 or 4 bytes; they are there after `wait_for_copies`.
__device__ __forceinline__ void copy_16_bytes(void* target, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(target)), "l"(source) : "memory");
}
__device__ __forceinline__ void copy_4_bytes(void* target, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(target)), "l"(source) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A later bulk copy to the same memory comes after them.
__device__ __forceinline__ void order_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace bertadam::cuda
