// The canonical norm tree (core/norm_tree.h) on a warp and on a block: the same additions as on the host.
#pragma once

#include "core/norm_tree.h"
#include "core/plan.h"
#include "cuda/vector_io.cuh"

namespace bertadam::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ double shuffle_xor_add(double x, int lane_mask) {
  return x + __shfl_xor_sync(kFullWarp, x, lane_mask);
}

// A lane's share of a leaf: lane l holds accumulators 4l .. 4l+3.
template <bool kWhole>
__device__ __forceinline__ void lane_leaf_sums(double (&sum)[4], const float* leaf, int n) {
  const int column = threadIdx.x % 32 * 4;
  constexpr int kRowsInFlight = kWhole ? kLeafRows : 1;
#pragma unroll 1
  for (int first_row = 0; first_row < kLeafRows; first_row += kRowsInFlight) {
    float grad[kRowsInFlight][4];
#pragma unroll
    for (int row = 0; row < kRowsInFlight; ++row) {
      const int first = (first_row + row) * kLeafAccumulators + column;
      load4<kWhole>(grad[row], leaf + first, n - first);
    }
#pragma unroll
    for (int row = 0; row < kRowsInFlight; ++row) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] += square(grad[row][k]);
    }
  }
}

// The sum of one leaf, in every lane. Halving 128 accumulators to 4 adds lanes 16, 8, 4, 2 and 1 apart; the first
// two halvings leave one half of the accumulators on each side, so most shuffles move one double instead of four.
__device__ __forceinline__ double warp_leaf_sum(const float* leaf, int n) {
  const int lane = threadIdx.x % 32;
  double sum[4] = {0.0, 0.0, 0.0, 0.0};
  if (n == kLeafElements && is_aligned(leaf)) {
    lane_leaf_sums<true>(sum, leaf, n);
  } else {
    lane_leaf_sums<false>(sum, leaf, n);
  }
  const bool upper = (lane & 16) != 0;
  const double from_0 = __shfl_xor_sync(kFullWarp, upper ? sum[0] : sum[2], 16);
  const double from_1 = __shfl_xor_sync(kFullWarp, upper ? sum[1] : sum[3], 16);
  const double a = (upper ? sum[2] : sum[0]) + from_0;  // accumulator 0 in the lower lanes, 2 in the upper
  const double b = (upper ? sum[3] : sum[1]) + from_1;  // accumulator 1, 3
  const bool odd = (lane & 8) != 0;
  double x = (odd ? b : a) + __shfl_xor_sync(kFullWarp, odd ? a : b, 8);
  x = shuffle_xor_add(x, 4);
  x = shuffle_xor_add(x, 2);
  x = shuffle_xor_add(x, 1);
  x = shuffle_xor_add(x, 16);  // accumulators 2 apart, then 1
  return shuffle_xor_add(x, 8);
}

// The pairwise sum of up to kTreeFanIn values, in every lane; values past `n` count as zero.
__device__ __forceinline__ double warp_pairwise_sum(const double* values, int n) {
  constexpr int kPerLane = kTreeFanIn / 32;
  const int first = threadIdx.x % 32 * kPerLane;
  double x[kPerLane];
#pragma unroll
  for (int k = 0; k < kPerLane; ++k) x[k] = first + k < n ? __ldcg(values + first + k) : 0.0;
#pragma unroll
  for (int width = kPerLane / 2; width > 0; width /= 2) {
#pragma unroll
    for (int k = 0; k < width; ++k) x[k] = x[2 * k] + x[2 * k + 1];
  }
  double sum = x[0];
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) sum = shuffle_xor_add(sum, mask);
  return sum;
}

// The pairwise sum of `n` nodes by the whole block, in every thread. The levels above are written behind the nodes
// (see tree_nodes), so the nodes stay as they are.
__device__ __forceinline__ double block_pairwise_sum(double* nodes, int64_t n) {
  const int warp = threadIdx.x / 32;
  const int n_warps = blockDim.x / 32;
  while (n > 1) {
    const int64_t n_parents = (n + kTreeFanIn - 1) / kTreeFanIn;
    for (int64_t i = warp; i < n_parents; i += n_warps) {
      const int64_t rest = n - i * kTreeFanIn;
      const double sum =
          warp_pairwise_sum(nodes + i * kTreeFanIn, static_cast<int>(rest < kTreeFanIn ? rest : kTreeFanIn));
      if (threadIdx.x % 32 == 0) nodes[n + i] = sum;
    }
    __syncthreads();
    nodes += n;
    n = n_parents;
  }
  return __ldcg(nodes);
}

}  // namespace bertadam::cuda
