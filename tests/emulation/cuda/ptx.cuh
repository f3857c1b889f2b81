// In place of csrc/cuda/ptx.cuh.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace bertadam::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

inline int lane_id() { return static_cast<int>(threadIdx.x % 32); }

// Relaxed stores reach other blocks late and in any order; their own block sees them at once.
class LateStores {
 public:
  static void add(uint64_t* address, uint64_t word) { waiting().push_back({address, word}); }

  static uint64_t load(const uint64_t* address) {
    const auto& all = waiting();
    const auto last = std::find_if(all.rbegin(), all.rend(), [=](const Store& s) { return s.address == address; });
    return last != all.rend() ? last->word : __atomic_load_n(address, __ATOMIC_RELAXED);
  }

  // Called at every yield.
  static void one_arrives() {
    if (waiting().empty() || emulation::block->random(1000) != 0) return;
    arrive(waiting().begin() + emulation::block->random(static_cast<uint32_t>(waiting().size())));
  }
  static void all_arrive() {
    while (!waiting().empty()) arrive(waiting().begin());
  }

 private:
  struct Store {
    uint64_t* address;
    uint64_t word;
  };
  static std::vector<Store>& waiting() {
    static thread_local std::vector<Store> all;
    return all;
  }
  static void arrive(std::vector<Store>::iterator store) {
    __atomic_store_n(store->address, store->word, __ATOMIC_RELAXED);
    waiting().erase(store);
  }
};

inline uint64_t load_relaxed(const uint64_t* address) {
  emulation::yield();
  return LateStores::load(address);
}
inline uint32_t load_relaxed(const uint32_t* address) {
  emulation::yield();
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}
inline void store_relaxed(uint64_t* address, uint64_t word) { LateStores::add(address, word); }

inline uint32_t add_one_relaxed(uint32_t* counter) { return atomicAdd(counter, 1u); }
inline uint32_t add_one_ordered(uint32_t* counter) {
  LateStores::all_arrive();
  return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL);
}

// Torn: the words may come from two writers.
struct WordPair {
  uint64_t words[2];
};
inline WordPair load_relaxed(const WordPair* address) {
  return {{load_relaxed(&address->words[0]), load_relaxed(&address->words[1])}};
}
inline void store_relaxed(WordPair* address, const WordPair& x) {
  store_relaxed(&address->words[0], x.words[0]);
  store_relaxed(&address->words[1], x.words[1]);
}

inline void prefetch_to_l2(const void*) {}
inline uint64_t keep_in_l2() { return 0; }

// What hardware demands of an address.
inline void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) emulation::Block::fail("an access is not aligned");
}
inline void load_words(float (&x)[4], const void* address) {
  check_aligned(address, 16);
  std::memcpy(x, address, sizeof(x));
}
inline void load_words(uint32_t (&x)[4], const void* address) {
  check_aligned(address, 16);
  std::memcpy(x, address, sizeof(x));
}
inline void load_words(uint32_t (&x)[2], const void* address) {
  check_aligned(address, 8);
  std::memcpy(x, address, sizeof(x));
}
inline void store_words(void* address, const float (&x)[4]) {
  check_aligned(address, 16);
  std::memcpy(address, x, sizeof(x));
}
inline void store_words(void* address, const uint32_t (&x)[2]) {
  check_aligned(address, 8);
  std::memcpy(address, x, sizeof(x));
}

}  // namespace bertadam::cuda
