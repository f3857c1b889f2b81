// Norms: the canonical tree (core/norm_tree.h) over a draw's leaves and upwards, the coefficients that come of it, and
// the norms that pass through no ring.
#pragma once

#include "core/rules/clip.h"
#include "cuda/leaves.cuh"
#include "cuda/tree.cuh"

namespace bertadam::cuda {

// What is left of a draw's norms once its leaves are summed, by one whole warp.
class NormTrees {
 public:
  __device__ explicit NormTrees(const Block& block)
      : block_(block),
        args_(block.tables.args),
        tree_(args_.workspace.nodes, args_.workspace.arrivals, block.epoch),
        unscale_(unscaling(args_.scaler)) {}

  // `part`: the first kLeaves lanes have the draw's, the others one that does not exist. `scratch`: the warp's own.
  __device__ __forceinline__ void add(const Part& part, double leaf_sum, double* scratch) {
    if (lane_id() % kLanesPerLeaf == 0) scratch[lane_id() / kLanesPerLeaf] = leaf_sum;
    __syncwarp();
    // The first part of a tensor or chunk stands for its run of parts.
    const bool begins = part.exists && part.index % kLeaves == 0;
    const bool adds = begins && part.has_grad;
    double sum[1] = {adds ? run_sum<1>(scratch + lane_id(), part.n_in_run) : 0.0};
    bool is_root = adds && part.n_chunks == 1;
    // A chunk of a larger tensor has a draw to itself: lane 0 has it.
    if (__shfl_sync(kFullWarp, adds && !is_root, 0)) {
      const TreePosition at{__shfl_sync(kFullWarp, part.first_node, 0), __shfl_sync(kFullWarp, part.index, 0) / kLeaves,
                            __shfl_sync(kFullWarp, part.n_chunks, 0)};
      sum[0] = __shfl_sync(kFullWarp, sum[0], 0);
      is_root = tree_.climbs_to_root(at, sum, false) && lane_id() == 0;
    }
    const bool absent = begins && !part.has_grad && part.index == 0;
    finish(part, is_root, absent, sum);
  }

 private:
  // Where all norms are waited for but every tensor is clipped by its own, whoever comes last reads the others' norms.
  __device__ bool hands_over_norms() const { return args_.wait_for_all && !args_.clip_by_total_norm; }

  // Lanes whose tensor's sum is complete, or that has no gradient, say so.
  __device__ __forceinline__ void finish(const Part& part, bool complete, bool absent, double (&sum)[1]) {
    const uint32_t index = part.tensor;
    if (complete || absent) {
      const double norm = absent ? nan("") : gradient_norm(sum[0], unscale_);
      if (complete && !args_.wait_for_all) publish(part.coefficient, coefficient(part.group, norm));
      if (absent || part.needs_norm) args_.statistics.norms[index] = norm;
      if (absent) args_.statistics.coefficients[index] = nanf("");
      // Only here: fenced with every chunk, BERT-large's fp16 step took 3 % longer.
      if (hands_over_norms()) __threadfence();
    }
    if (!args_.wait_for_all) return;
    // All lanes arrive at once; rarely one of them is the last of its siblings.
    const TreePosition at{args_.total_tree, index, args_.n_tensors};
    if (absent) sum[0] = 0.0;
    const bool last = (complete || absent) && (at.is_root() || tree_.leave(at, sum));
    for (unsigned pending = __ballot_sync(kFullWarp, last); pending != 0; pending &= pending - 1) {
      const int lane = __ffs(pending) - 1;
      double total[1] = {__shfl_sync(kFullWarp, sum[0], lane)};
      TreePosition node{args_.total_tree, __shfl_sync(kFullWarp, index, lane), args_.n_tensors};
      if (!node.is_root()) {
        tree_.sum_siblings(node, total);
        node = node.parent();
      }
      if (tree_.climbs_to_root(node, total, hands_over_norms())) finish_all(total[0]);
    }
  }

  __device__ __forceinline__ void finish_all(double total) {
    const float code = code_of_step(args_, unscale_, total);
    const double total_norm = gradient_norm(total, unscale_);
    if (lane_id() == 0) {
      *args_.statistics.total_norm = total_norm;
      if (args_.scaler.finds_inf != nullptr) *args_.scaler.finds_inf = all_finite(total) ? 0.0f : 1.0f;
    }
    if (args_.clip_by_total_norm) {
      for (uint32_t i = lane_id(); i < args_.n_groups; i += 32) {
        publish(i, code < 0.0f ? code : coefficient(i, total_norm));
      }
      return;
    }
    __threadfence();
    for (uint32_t i = lane_id(); i < args_.n_tensors; i += 32) {
      const double norm = __ldcg(args_.statistics.norms + i);
      publish(i, code < 0.0f ? code : coefficient(args_.tensors[i].group, norm));
    }
  }

  // `norm`: of a tensor, or of all of them where they are clipped together.
  __device__ float coefficient(uint32_t group, double norm) {
    const GroupScalars& scalars = block_.tables.groups[group];
    return clip_coefficient(norm, clipping(args_, scalars), unscale_);
  }

  __device__ void publish(uint32_t index, float coefficient) {
    store_relaxed(&args_.workspace.coefficients[index], tag(block_.epoch, float_bits(coefficient)));
  }

  const Block& block_;
  const StepArgs& args_;
  const Tree<1> tree_;
  const Unscaling unscale_;
};

// The norms of a draw that is in no ring, from memory, by one warp.
template <class Rule, class Types>
__device__ __forceinline__ void take_distant_norms(const Tables& tables, NormTrees& trees, uint32_t draw,
                                                   double* scratch) {
  const WorkItem item = lane_id() < kItemsPerDraw ? tables.item_of(draw, lane_id()) : WorkItem{kNoTensor, 0};
  const TensorEntry entry = tables.entry_of(item.tensor);
  const void* const grad = entry.template grad_of<Types>(item);
  const Part part = tables.template describe<Rule, Types>(item, entry);
  trees.add(part, distant_leaf_sums<Types>(grad, part.types, part.n), scratch);
}

// The draws that lead the list, of norms alone. They wait for nothing, so before a warp takes up its role it takes one
// after the other, straight from memory, and draws the next one before it reads the last.
template <class Rule, class Types>
__device__ __forceinline__ void sum_leading_norms(const Block& block, double* scratch) {
  const StepArgs& args = block.tables.args;
  if (args.n_leading == 0) return;
  NormTrees trees(block);
  const auto draw_one = [&] { return lane_id() == 0 ? atomicAdd(&args.workspace.counters->leading_ticket, 1u) : 0u; };
  for (uint32_t ticket = draw_one();;) {
    const uint32_t draw = __shfl_sync(kFullWarp, ticket, 0);
    if (draw >= args.n_leading) return;
    ticket = draw_one();
    const uint32_t later = draw + kItemsAhead;
    if (lane_id() == 0 && later < args.n_leading) prefetch_to_l2(args.items + size_t{later} * kItemsPerDraw);
    take_distant_norms<Rule, Types>(block.tables, trees, draw, scratch);
  }
}

}  // namespace bertadam::cuda
