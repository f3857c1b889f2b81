// Sums on their way up a tree (core/norm_tree.h), several side by side. Whoever brings the last of a node's children
// adds them up and carries the sums on; no float atomics, no order that depends on timing.
#pragma once

#include "core/norm_tree.h"
#include "cuda/memory.cuh"
#include "cuda/tuning.h"

namespace bertadam::cuda {

// A run of leaves, pairwise by index; `kStride` apart.
template <int kStride>
__device__ __forceinline__ double run_sum(const double* leaves, int n) {
  double x[kItemsPerDraw];
#pragma unroll
  for (int k = 0; k < kItemsPerDraw; ++k) x[k] = k < n ? leaves[k * kStride] : 0.0;
#pragma unroll
  for (int width = kItemsPerDraw / 2; width > 0; width /= 2) {
#pragma unroll
    for (int k = 0; k < width; ++k) x[k] = x[2 * k] + x[2 * k + 1];
  }
  return x[0];
}

template <int kSums>
class Tree {
 public:
  __device__ Tree(double* nodes, uint32_t* arrivals, uint32_t epoch)
      : nodes_(reinterpret_cast<TaggedDouble*>(nodes)), arrivals_(arrivals), epoch_(epoch) {}

  // By one thread: leaves a node's sums; true for whoever brings the last of its siblings'.
  __device__ bool leave(const TreePosition& at, const double (&sums)[kSums]) const {
#pragma unroll
    for (int k = 0; k < kSums; ++k) TaggedDouble::of(sums[k], epoch_).store(nodes_ + at.node() * kSums + k);
    const Siblings siblings = at.siblings();
    uint32_t* const arrivals = &arrivals_[siblings.parent];
    if (add_one_relaxed(arrivals) + 1 < siblings.n) return false;
    *arrivals = 0;
    return true;
  }

  // By the whole warp: the sums of a node's siblings, in every lane. All of them have been written; what is not here
  // yet is waited for.
  __device__ void sum_siblings(const TreePosition& at, double (&sums)[kSums]) const {
    static_assert(kTreeFanIn == 32, "a node for each lane");
    const Siblings siblings = at.siblings();
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      double x = 0.0;
      if (lane_id() < static_cast<int>(siblings.n)) {
        TaggedDouble tagged;
        do {
          tagged = TaggedDouble::load(nodes_ + (siblings.first + lane_id()) * kSums + k);
        } while (!tagged.is_of(epoch_));
        x = tagged.value();
      }
      __syncwarp();
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) x += __shfl_xor_sync(kFullWarp, x, distance);
      sums[k] = x;
    }
  }

  // By the whole warp: carries a node's sums upwards for as long as all its siblings are there; true at the top.
  // `fences`: what the warp wrote before is there for whoever goes on.
  __device__ __forceinline__ bool climbs_to_root(TreePosition at, double (&sums)[kSums], bool fences) const {
    for (; !at.is_root(); at = at.parent()) {
      if (fences) __threadfence();
      const bool last = lane_id() == 0 && leave(at, sums);
      if (!__shfl_sync(kFullWarp, last, 0)) return false;
      sum_siblings(at, sums);
    }
    return true;
  }

 private:
  TaggedDouble* const nodes_;
  uint32_t* const arrivals_;
  const uint32_t epoch_;
};

}  // namespace bertadam::cuda
