// The engine for rules with a trust ratio: the ring of engine.cuh, whose draws are surveyed (survey_warp.cuh), summed
// (trust_ratios.cuh) and applied (applier.cuh). Between the two the update stays on chip where it fits; elsewhere it is
// recalled from the states. It is never written down.
#pragma once

#include "cuda/applier.cuh"
#include "cuda/engine.cuh"
#include "cuda/survey_warp.cuh"
#include "cuda/trust_ratios.cuh"

namespace bertadam::cuda {

template <class Rule, class Types, class Args>
__global__ void __launch_bounds__(kThreads, 1) ratio_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ double scratch[kThreads / 32][kLeaves];
  const Tables tables = tables_of(args);
  const Block block = begin_block<Types>(tables, memory, args.n_slots, kUpdateWarps + 2);
  const int warp = static_cast<int>(threadIdx.x / 32);
  if (warp != kProducerWarp) sum_leading_norms<Rule, Types>(block, scratch[warp]);
  if (warp < kUpdateWarps) {
    SurveyWarp<Rule, Types>(block, warp).run();
  } else if (warp == kProducerWarp) {
    Producer<Rule, Types>(block).run(scratch[warp]);
  } else if (warp == kProducerWarp + 1) {
    TrustRatios<Rule>(block).run();
  } else {
    Applier<Rule, Types>(block, warp - kProducerWarp - 2).run();
  }
  end_block(block);
}

template <class Rule, class Types>
Instance ratio_instance() {
  return {ratio_kernel<Rule, Wide<Types>, SmallArgs>, ratio_kernel<Rule, Wide<Types>, LargeArgs>,
          Wide<Types>::kMostGradBytes};
}

}  // namespace bertadam::cuda
