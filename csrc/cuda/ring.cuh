// The ring of a block: slots in shared memory that draws pass through, each with its gradients and what its workers
// need to know. The producer fills slots, norm warps and update warps read them; every one of them
// releases every slot, also one that it has nothing to do for.
#pragma once

#include <cstdint>

#include "cuda/barrier.cuh"
#include "cuda/parts.cuh"
#include "cuda/ptx.cuh"
#include "cuda/tuning.h"

namespace bertadam::cuda {

// What a slot holds beside gradients.
struct Draw {
  Part parts[kItemsPerDraw];
  PartScalars scalars[kItemsPerDraw];
  double sums[kItemsPerDraw][2];  // of a survey: squares of parameters and of updates
  uint32_t kinds;                 // 0: the end
  uint32_t index;                 // in the list
};

struct RingMemory {
  unsigned char* grads;  // [slot][part], a part in a room of part_bytes: see placed_grads
  Draw* draws;           // [slot]
  Barrier* full;         // the gradients and the parts are there
  Barrier* ready;        // so are the scalars
  Barrier* surveyed;     // the updates are in the gradients' place, and their sums are there
  Barrier* empty;

  uint32_t part_bytes;

  // `grad_bytes`: of the largest gradient element.
  static constexpr size_t slot_bytes(uint32_t grad_bytes) {
    return size_t{grad_bytes} * kChunkElements + sizeof(Draw) + 4 * sizeof(Barrier);
  }

  __device__ RingMemory(unsigned char* memory, uint32_t n_slots, uint32_t grad_bytes)
      : grads(memory),
        draws(reinterpret_cast<Draw*>(grads + size_t{n_slots} * grad_bytes * kChunkElements)),
        full(reinterpret_cast<Barrier*>(draws + n_slots)),
        ready(full + n_slots),
        surveyed(ready + n_slots),
        empty(surveyed + n_slots),
        part_bytes(grad_bytes * kPartElements) {}

  // By a whole warp that has read all it needs.
  __device__ void release(uint32_t slot) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) empty[slot].arrive();
  }

  __device__ unsigned char* room(uint32_t slot, int part) const {
    return grads + (slot * kItemsPerDraw + part) * part_bytes;
  }
};

// The gradients of a part stand at the end of its room: a survey that turns them into floats, in order, overwrites none
// that is still to be read.
template <class Types>
__device__ constexpr uint32_t grads_offset(uint32_t element_bytes) {
  return (Types::kMostGradBytes - element_bytes) * kPartElements;
}
template <class Types>
__device__ __forceinline__ const void* placed_grads(const unsigned char* room, uint32_t types) {
  const void* grads = nullptr;
  Types::with_grad(types, [&](auto element) { grads = room + grads_offset<Types>(sizeof(element)); });
  return grads;
}

// A place in the ring that moves on in steps, and the parity of the barriers' phase there.
struct Cursor {
  uint32_t slot;
  uint32_t parity = 0;

  // The place that many steps back; no more than there are slots.
  __device__ Cursor retreated(uint32_t steps, uint32_t n_slots) const {
    return slot >= steps ? Cursor{slot - steps, parity} : Cursor{slot + n_slots - steps, parity ^ 1u};
  }
  __device__ void advance(uint32_t steps, uint32_t n_slots) {
    slot += steps;
    if (slot >= n_slots) {
      slot -= n_slots;
      parity ^= 1u;
    }
  }
};

// What every role of a block works with.
struct Block {
  const Tables& tables;
  RingMemory ring;
  uint32_t n_slots;
  uint32_t epoch;

  // By the whole warp: whether nobody finds another draw of norms or surveys, or another one that leads the list.
  __device__ bool all_prepared() const {
    const StepArgs& args = tables.args;
    return __any_sync(kFullWarp, load_relaxed(&args.workspace.counters->ticket) >= args.n_preparing - args.n_leading);
  }
  __device__ bool leading_drawn() const {
    const StepArgs& args = tables.args;
    return __any_sync(kFullWarp, load_relaxed(&args.workspace.counters->leading_ticket) >= args.n_leading);
  }
};

}  // namespace bertadam::cuda
