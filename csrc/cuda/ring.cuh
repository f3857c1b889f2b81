// The ring of a block: slots in shared memory that draws pass through, each with its gradients and what its workers
// need to know. The producer fills slots, norm warps and update warps read them; every one of them
// releases every slot, also one that it has nothing to do for.
#pragma once

#include <cstdint>

#include "cuda/barrier.cuh"
#include "cuda/parts.cuh"
#include "cuda/tuning.h"

namespace bertadam::cuda {

// What a slot holds beside gradients.
struct Draw {
  Part parts[kItemsPerDraw];
  PartScalars scalars[kItemsPerDraw];
  uint32_t kinds;  // 0: the end
};

struct RingMemory {
  unsigned char* grads;  // [slot][part][element], a part in part_bytes
  Draw* draws;           // [slot]
  Barrier* full;         // the gradients and the parts are there
  Barrier* ready;        // so are the scalars
  Barrier* empty;

  uint32_t part_bytes;

  // `grad_bytes`: of the largest gradient element.
  static constexpr size_t slot_bytes(uint32_t grad_bytes) {
    return size_t{grad_bytes} * kChunkElements + sizeof(Draw) + 3 * sizeof(Barrier);
  }

  __device__ RingMemory(unsigned char* memory, uint32_t n_slots, uint32_t grad_bytes)
      : grads(memory),
        draws(reinterpret_cast<Draw*>(grads + size_t{n_slots} * grad_bytes * kChunkElements)),
        full(reinterpret_cast<Barrier*>(draws + n_slots)),
        ready(full + n_slots),
        empty(ready + n_slots),
        part_bytes(grad_bytes * kPartElements) {}

  // By a whole warp that has read all it needs.
  __device__ void release(uint32_t slot) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) empty[slot].arrive();
  }

  __device__ unsigned char* part_grads(uint32_t slot, int part) const {
    return grads + (slot * kItemsPerDraw + part) * part_bytes;
  }
};

// A place in the ring that moves on in steps, and the parity of the barriers' phase there.
struct Cursor {
  uint32_t slot;
  uint32_t parity = 0;

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
};

}  // namespace bertadam::cuda
