// In place of csrc/cuda/barrier.cuh. Bulk copies arrive at a time of their own, in any order.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace bertadam::cuda {

class Barrier {
 public:
  void init(uint32_t n_arrivals) { *this = Barrier{n_arrivals}; }

  void arrive() {
    if (missing_ == 0) emulation::Block::fail("more arrivals at a barrier than it has");
    --missing_;
    advance();
  }

  bool is_over(uint32_t parity) {
    emulation::yield();
    return (phase_ & 1u) != parity;
  }

  void see(uint32_t parity) {
    if ((phase_ & 1u) == parity) emulation::Block::fail("a phase of a barrier was to be over and is not");
  }

  void wait(uint32_t parity) {
    while (!is_over(parity)) {
    }
  }

  void copy_bulk(void* target, const void* source, uint32_t bytes, uint64_t) {
    check_aligned(target, 16);
    check_aligned(source, 16);
    if (bytes == 0 || bytes % 16 != 0) emulation::Block::fail("a bulk copy is not of 16 bytes and more");
    std::memset(target, 0xff, bytes);  // NaN until it is there
    n_bytes_ += bytes;
    copies().push_back({this, target, source, bytes});
  }

  // Called at every yield.
  static void copies_arrive() {
    auto& all = copies();
    if (all.empty() || emulation::block->random(256) != 0) return;
    std::swap(all[emulation::block->random(static_cast<uint32_t>(all.size()))], all.back());
    const Copy copy = all.back();
    all.pop_back();
    std::memcpy(copy.target, copy.source, copy.bytes);
    copy.barrier->n_bytes_ -= copy.bytes;
    copy.barrier->advance();
  }

  Barrier() = default;

 private:
  struct Copy {
    Barrier* barrier;
    void* target;
    const void* source;
    uint32_t bytes;
  };
  static std::vector<Copy>& copies() {
    static thread_local std::vector<Copy> all;
    return all;
  }

  explicit Barrier(uint32_t n_arrivals) : expected_(n_arrivals), missing_(n_arrivals) {}

  void advance() {
    if (missing_ > 0 || n_bytes_ > 0) return;
    missing_ = expected_;
    ++phase_;
  }

  uint32_t expected_ = 0, missing_ = 0, phase_ = 0;
  int64_t n_bytes_ = 0;
};

inline void fence_barrier_init() {}

inline void copy_16_bytes(void* target, const void* source) {
  check_aligned(target, 16);
  check_aligned(source, 16);
  std::memcpy(target, source, 16);
}
inline void copy_4_bytes(void* target, const void* source) {
  check_aligned(target, 4);
  check_aligned(source, 4);
  std::memcpy(target, source, 4);
}
inline void wait_for_copies() {}
inline void order_copies() {}

}  // namespace bertadam::cuda
