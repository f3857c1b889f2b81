// The role of the warp that carries the surveys' sums up the trees of their tensors, and what comes of them: a tensor's
// trust ratio.
#pragma once

#include "core/rules/clip.h"
#include "cuda/ring.cuh"
#include "cuda/tree.cuh"

namespace bertadam::cuda {

template <class Rule>
class TrustRatios {
 public:
  __device__ explicit TrustRatios(const Block& block)
      : block_(block),
        args_(block.tables.args),
        tree_(args_.workspace.survey_nodes, args_.workspace.survey_arrivals, block.epoch) {}

  __device__ void run() {
    for (Cursor here{0};; here.advance(1, block_.n_slots)) {
      const RingMemory& ring = block_.ring;
      ring.full[here.slot].wait(here.parity);
      const Draw& draw = ring.draws[here.slot];
      if (draw.kinds == 0) return;
      if ((draw.kinds & kSurvey) == 0) {
        ring.release(here.slot);
        continue;
      }
      ring.surveyed[here.slot].wait(here.parity);
      const Part part = lane_id() < kItemsPerDraw ? draw.parts[lane_id()] : Part{};
      double sums[2] = {0.0, 0.0};
      if (part.exists && part.has_grad && part.index % kItemsPerDraw == 0) {
        for (int k = 0; k < 2; ++k) sums[k] = run_sum<2>(&draw.sums[lane_id()][k], part.n_in_run);
      }
      const bool is_kept = (draw.kinds & kUpdate) != 0;
      ring.release(here.slot);
      add(part, sums, is_kept);
    }
  }

 private:
  __device__ __forceinline__ void add(const Part& part, double (&sums)[2], bool is_kept) {
    // The first part of a tensor or chunk stands for its run of parts.
    const bool begins = part.exists && part.index % kItemsPerDraw == 0;
    const bool adds = begins && part.has_grad && !(coefficient_of(part) < 0.0f);
    bool is_root = adds && part.n_chunks == 1;
    // A chunk of a larger tensor has a draw to itself: lane 0 has it.
    if (__shfl_sync(kFullWarp, adds && !is_root, 0)) {
      const TreePosition at{__shfl_sync(kFullWarp, part.first_node, 0),
                            __shfl_sync(kFullWarp, part.index, 0) / kItemsPerDraw,
                            __shfl_sync(kFullWarp, part.n_chunks, 0)};
      for (double& sum : sums) sum = __shfl_sync(kFullWarp, sum, 0);
      // What is not kept is recalled from the states, perhaps by another block.
      is_root = tree_.climbs_to_root(at, sums, !is_kept) && lane_id() == 0;
    }
    float ratio = nanf("");
    if (is_root) {
      ratio = Rule::trust_ratio(block_.tables.groups[part.group], sqrt(sums[0]), sqrt(sums[1]));
      store_relaxed(&args_.workspace.ratios[part.tensor], tag(block_.epoch, float_bits(ratio)));
    }
    const bool none = begins && !adds && part.index == 0;
    if (is_root || none) args_.statistics.trust_ratios[part.tensor] = ratio;
  }

  // Known before there is anything to add.
  __device__ float coefficient_of(const Part& part) const {
    if (!part.waits) return unclipped_coefficient(unscaling(args_.scaler));
    return float_from_bits(payload(load_relaxed(&args_.workspace.coefficients[part.coefficient])));
  }

  const Block& block_;
  const StepArgs& args_;
  const Tree<2> tree_;
};

}  // namespace bertadam::cuda
