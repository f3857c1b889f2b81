// The role of a norm warp: the norms of draws that are kept, in every kNormWarps-th slot of the ring.
#pragma once

#include "cuda/norms.cuh"
#include "cuda/ring.cuh"

namespace bertadam::cuda {

template <class Types>
class NormWarp {
 public:
  __device__ NormWarp(const Block& block, int which) : block_(block), trees_(block), which_(which) {}

  // It keeps to its slots, so that it misses no phase of their barriers.
  __device__ __forceinline__ void run(double* scratch) {
    for (Cursor here{which_};;) {
      block_.ring.full[here.slot].wait(here.parity);
      const Draw& draw = block_.ring.draws[here.slot];
      if (draw.kinds == 0) return;
      if (draw.kinds == (kNorm | kUpdate)) {
        const Part part = lane_id() < kLeaves ? draw.parts[lane_id()] : Part{};
        const double sum = sums_of(here.slot, draw);
        block_.ring.release(here.slot);  // as soon as it is read
        trees_.add(part, sum, scratch);
      } else {
        block_.ring.release(here.slot);
      }
      here.slot += kNormWarps;
      if (here.slot >= block_.n_slots) here = {which_, here.parity ^ 1u};
    }
  }

 private:
  __device__ double sums_of(uint32_t slot, const Draw& draw) {
    const unsigned char* const grads = block_.ring.room(slot, 0);
    const uint32_t types = draw.parts[0].types;
    bool is_plain = true;  // nearly every draw
    if (lane_id() < kLeaves) {
      const Part& part = draw.parts[lane_id()];
      is_plain = part.n == kLeafElements && part.types == types;
    }
    if (!__all_sync(kFullWarp, is_plain)) return leaf_sums(PartialLeaves<Types>{grads, draw.parts});
    double sum = 0.0;
    Types::with_grad(types, [&](auto grad) { sum = leaf_sums(WholeLeaves<Types, decltype(grad)>{grads}); });
    return sum;
  }

  const Block& block_;
  NormTrees trees_;
  const uint32_t which_;
};

}  // namespace bertadam::cuda
