// The sums of squares of a draw's leaves (core/norm_tree.h), by one warp.
#pragma once

#include "core/norm_tree.h"
#include "cuda/elements.cuh"
#include "cuda/ring.cuh"

namespace bertadam::cuda {

constexpr int kLeaves = kItemsPerDraw;
static_assert(kPartElements == kLeafElements && (kLeaves == 4 || kLeaves == 8), "see leaf_sums");
constexpr int kLanesPerLeaf = 32 / kLeaves;

template <class Element>
__device__ __forceinline__ Element* shuffled(Element* pointer, int lane) {
  return reinterpret_cast<Element*>(__shfl_sync(kFullWarp, reinterpret_cast<unsigned long long>(pointer), lane));
}

// The gradients of a draw, four elements of a leaf at a time; those past the leaf's end count as zero. `fetch` begins
// kRows rows of every leaf; `load` takes the `r`-th of them.
template <class Types, class Grad>
struct WholeLeaves {  // in a slot, all of them full
  static constexpr int kRows = 1;
  const unsigned char* slot;

  __device__ void fetch(int) {}
  __device__ void load(float (&x)[4], int leaf, int row, int) const {
    const int first = first_of(row);
    constexpr int kStride = kLeafElements * Types::kMostGradBytes;
    const unsigned char* const grads = slot + leaf * kStride + grads_offset<Types>(sizeof(Grad));
    load_four_from_slot(x, reinterpret_cast<const Grad*>(grads) + first);
  }
};
template <class Types>
struct PartialLeaves {  // in a slot
  static constexpr int kRows = 1;
  const unsigned char* slot;
  const Part* parts;

  __device__ void fetch(int) {}
  __device__ void load(float (&x)[4], int leaf, int row, int r) const {
    Types::with_grad(parts[leaf].types,
                     [&](auto grad) { WholeLeaves<Types, decltype(grad)>{slot}.load(x, leaf, row, r); });
    const int first = first_of(row), n = parts[leaf].n;
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = first + k < n ? x[k] : 0.0f;
  }
};
template <class Types>
struct DistantLeaves {  // in global memory: lane k has leaf k's address, type and length
  static constexpr int kRows = 1;
  const void* grad;
  uint32_t types;
  int n;

  __device__ void fetch(int) {}
  __device__ void load(float (&x)[4], int leaf, int row, int) const {
    const int first = first_of(row);
    const void* const data = shuffled(grad, leaf);
    const int end = __shfl_sync(kFullWarp, n, leaf);
    Types::with_grad(__shfl_sync(kFullWarp, types, leaf), [&](auto element) {
      const auto* const elements = static_cast<const decltype(element)*>(data);
#pragma unroll
      for (int k = 0; k < 4; ++k) x[k] = first + k < end ? to_float(elements[first + k]) : 0.0f;
    });
  }
};

template <class Types, class Grad>
struct AlignedLeaves {  // in global memory, all of them full and aligned
  static constexpr int kRows = Types::kBytesAhead / sizeof(Grad);
  const Grad* leaves[kLeaves];
  Words words[kRows][kLeaves];

  __device__ void fetch(int row) {
#pragma unroll
    for (int i = 0; i < kRows * kLeaves; ++i) {
      load_four(words[i / kLeaves][i % kLeaves], leaves[i % kLeaves] + first_of(row + i / kLeaves));
    }
  }
  __device__ void load(float (&x)[4], int leaf, int, int r) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = to_float(element_of<Grad>(words[r][leaf], k));
  }
};

// Adds the values of lanes `kDistance`, half of that, ..., 1 apart. Of kN values a lane keeps the first half, or the
// second if its lane has the distance's bit, and adds those that its partner has of them; a single value is kept by
// both.
template <int kN, int kDistance>
__device__ __forceinline__ void halve(double* x) {
  if constexpr (kDistance > 0) {
    const bool upper = (lane_id() & kDistance) != 0;
    if constexpr (kN == 1) {
      x[0] += __shfl_xor_sync(kFullWarp, x[0], kDistance);
    } else {
#pragma unroll
      for (int k = 0; k < kN / 2; ++k) {
        const double kept = upper ? x[k + kN / 2] : x[k];
        const double sent = upper ? x[k] : x[k + kN / 2];
        x[k] = kept + __shfl_xor_sync(kFullWarp, sent, kDistance);
      }
    }
    halve<(kN > 1 ? kN / 2 : 1), kDistance / 2>(x);
  }
}

// The sums of a draw's leaves: kLanesPerLeaf lanes return leaf 0's, the next ones leaf 1's, and so on. Lane l reads
// accumulators 4l .. 4l+3 of every leaf, so adding lanes 16, 8, 4, 2 and 1 apart halves 128 accumulators to 4. The
// first halvings divide the leaves among the lanes, the next two the accumulators, so that most of them move half of
// what is left; where lanes are left over, both partners of the last keep the sum.
template <class Leaves>
__device__ __forceinline__ double leaf_sums(Leaves leaves) {
  double sums[4 * kLeaves];  // [leaf][accumulator]
#pragma unroll
  for (int k = 0; k < 4 * kLeaves; ++k) sums[k] = 0.0;
#pragma unroll 1
  for (int row = 0; row < kLeafRows; row += Leaves::kRows) {
    leaves.fetch(row);
#pragma unroll
    for (int i = 0; i < Leaves::kRows * kLeaves; ++i) {
      const int r = i / kLeaves, leaf = i % kLeaves;
      float x[4];
      leaves.load(x, leaf, row + r, r);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const double wide = x[k];
        sums[4 * leaf + k] = fma(wide, wide, sums[4 * leaf + k]);  // the square is exact
      }
    }
  }
  halve<4 * kLeaves, 16>(sums);
  double x = sums[0];
  x += __shfl_xor_sync(kFullWarp, x, kLanesPerLeaf / 2);
  return x + __shfl_xor_sync(kFullWarp, x, kLanesPerLeaf / 4);
}

// The same of leaves in global memory; lane k has leaf k's address, type and length.
template <class Types>
__device__ __forceinline__ double distant_leaf_sums(const void* grad, uint32_t types, int n) {
  const uint32_t first_types = __shfl_sync(kFullWarp, types, 0);
  const bool is_plain = lane_id() >= kLeaves || (n == kLeafElements && types == first_types && is_aligned(grad));
  if (!__all_sync(kFullWarp, is_plain)) return leaf_sums(DistantLeaves<Types>{grad, types, n});
  double sum = 0.0;
  Types::with_grad(first_types, [&](auto element) {
    AlignedLeaves<Types, decltype(element)> leaves;
#pragma unroll
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
      leaves.leaves[leaf] = static_cast<const decltype(element)*>(shuffled(grad, leaf));
    }
    sum = leaf_sums(leaves);
  });
  return sum;
}

}  // namespace bertadam::cuda
