// A block of a kernel on one thread of the host: every thread of the block is a fiber, and which of them runs next is
// drawn at random, so that each seed is another order of events.
#pragma once

#include <sched.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

namespace emulation {

struct Index {
  uint32_t x = 0;
};

class Block;
inline thread_local Block* block = nullptr;
inline thread_local Index thread_index, block_index, block_dim, grid_dim;

// Stacks are used again: their pages are there already.
class Stacks {
 public:
  static constexpr size_t kBytes = 256 * 1024;  // a kernel's arguments are 32 KB of it

  static std::unique_ptr<char[]> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique_for_overwrite<char[]>(kBytes);
    std::unique_ptr<char[]> stack = std::move(free_.back());
    free_.pop_back();
    return stack;
  }
  static void give_back(std::unique_ptr<char[]> stack) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(stack));
  }

 private:
  static inline std::mutex mutex_;
  static inline std::vector<std::unique_ptr<char[]>> free_;
};

class Block {
 public:
  Block(uint32_t n_threads, uint64_t seed, std::function<void()> body)
      : body_(std::move(body)), random_(seed), fibers_(n_threads), warps_(n_threads / 32) {}

  // All threads of the block, to their end. `index` and `n_blocks`: of the grid.
  void run(uint32_t index, uint32_t n_blocks) {
    block = this;
    block_index.x = index;
    grid_dim.x = n_blocks;
    block_dim.x = static_cast<uint32_t>(fibers_.size());
    n_left_ = fibers_.size();
    for (Fiber& fiber : fibers_) {
      fiber.stack = Stacks::take();
      getcontext(&fiber.start);
      fiber.start.uc_stack = {fiber.stack.get(), 0, Stacks::kBytes};
      makecontext(&fiber.start, &Block::main, 0);
    }
    if (_setjmp(done_) == 0) go_to(next());
    for (Fiber& fiber : fibers_) Stacks::give_back(std::move(fiber.stack));
    block = nullptr;
  }

  // Lets others run. Called wherever a thread waits for something, and now and then elsewhere.
  void yield() {
    for (const auto& event : at_yields) event();
    if (++n_yields_ > kMostYields) fail("the block does not end");
    if (n_yields_ % 1024 == 0) sched_yield();  // to other blocks
    if (_setjmp(fibers_[thread_index.x].here) == 0) go_to(next());
  }

  // What happens by chance: copies and stores that arrive.
  std::vector<std::function<void()>> at_yields;
  uint32_t random(uint32_t n) { return static_cast<uint32_t>(random_() % n); }

  // Every lane brings a word and gets all 32; a warp's lanes meet here. `file`, `line`: all must be at the same place.
  const uint64_t* exchange(uint64_t word, const char* file, int line) {
    Warp& warp = warps_[thread_index.x / 32];
    const uint64_t meeting = warp.n_meetings;
    if (warp.n_arrived == 0) warp.line = line;
    if (warp.line != line) fail("lanes of a warp meet at different places", file, line);
    uint64_t* const words = warp.words[meeting % 2];
    words[thread_index.x % 32] = word;
    if (++warp.n_arrived == 32) {
      warp.n_arrived = 0;
      ++warp.n_meetings;
    }
    while (warp.n_meetings == meeting) yield();
    return words;
  }

  void meet_all() {
    const uint64_t meeting = n_meetings_;
    if (++n_arrived_ == fibers_.size()) {
      n_arrived_ = 0;
      ++n_meetings_;
    }
    while (n_meetings_ == meeting) yield();
  }

  [[noreturn]] static void fail(const char* what, const char* file = "", int line = 0) {
    std::fprintf(stderr, "emulation: %s (block %u, thread %u) %s:%d\n", what, block_index.x, thread_index.x, file,
                 line);
    std::_Exit(3);
  }

 private:
  static constexpr uint64_t kMostYields = 2'000'000'000;

  struct Fiber {
    ucontext_t start;
    jmp_buf here;
    std::unique_ptr<char[]> stack;
    bool started = false, ended = false;
  };
  struct Warp {
    uint64_t words[2][32];
    uint32_t n_arrived = 0;
    uint64_t n_meetings = 0;
    int line = 0;
  };

  static void main() {
    Block* const self = block;
    self->body_();
    self->fibers_[thread_index.x].ended = true;
    if (--self->n_left_ == 0) _longjmp(self->done_, 1);
    self->go_to(self->next());
  }

  // Mostly a neighbour: a warp's lanes wait for each other.
  uint32_t next() {
    const auto n = static_cast<uint32_t>(fibers_.size());
    uint32_t at = thread_index.x;
    if (random(64) == 0) {
      at = random(n);
    } else {
      at = at / 32 * 32 + (at + 1) % 32;
    }
    for (uint32_t tries = 0; fibers_[at].ended; ++tries) at = tries < 32 ? at / 32 * 32 + (at + 1) % 32 : random(n);
    return at;
  }

  void go_to(uint32_t index) {
    thread_index.x = index;
    Fiber& fiber = fibers_[index];
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }

  const std::function<void()> body_;
  std::mt19937_64 random_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  size_t n_left_ = 0, n_arrived_ = 0;
  uint64_t n_meetings_ = 0, n_yields_ = 0;
  jmp_buf done_;
};

}  // namespace emulation
