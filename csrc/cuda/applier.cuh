// The role of an applier: the updates of draws whose surveys were kept on chip, in every kAppliers-th slot of the ring,
// when their tensors' trust ratios are there.
//
// Why a step always ends, with any number of resident blocks. Norms come first in the list and wait for nothing, then
// surveys, which wait for norms alone. A block that draws no more has a full ring whose oldest draw waits for a ratio
// that does not come; if surveys are still to be drawn, then before long its applier postpones that draw, and the block
// draws on. When all surveys are drawn, no ratio is missing for long, and the blocks take up what was postponed.
#pragma once

#include "cuda/four.cuh"
#include "cuda/ring.cuh"
#include "cuda/updates.cuh"

namespace bertadam::cuda {

template <class Rule, class Types>
class Applier {
 public:
  __device__ Applier(const Block& block, int which)
      : block_(block), args_(block.tables.args), here_{static_cast<uint32_t>(which)} {}

  __device__ void run() {
    // It keeps to its slots, so that it misses no phase of their barriers.
    for (;;) {
      const RingMemory& ring = block_.ring;
      ring.full[here_.slot].wait(here_.parity);
      const Draw& draw = ring.draws[here_.slot];
      if (draw.kinds == 0) return;
      if (draw.kinds == (kSurvey | kUpdate)) {
        ring.ready[here_.slot].wait(here_.parity);
        ring.surveyed[here_.slot].wait(here_.parity);
        take(draw);
      }
      ring.release(here_.slot);
      here_.slot += kAppliers;
      if (here_.slot >= block_.n_slots) here_ = {here_.slot % kAppliers, here_.parity ^ 1u};
    }
  }

 private:
  // A lane's part of the draw.
  struct Scales {
    float coefficient, ratio;
  };

  __device__ void take(const Draw& draw) {
    load(a_, draw.parts[0], 0);
    Scales scales;
    if (!wait_for_ratios(draw, scales)) {
      postpone(draw.index);
      return;
    }
#pragma unroll 1
    for (int index = 0; index < kItemsPerDraw; ++index) {
      const float coefficient = __shfl_sync(kFullWarp, scales.coefficient, index);
      const float ratio = __shfl_sync(kFullWarp, scales.ratio, index);
      const Part& part = draw.parts[index];
      const bool applies = part.has_grad && !(coefficient < 0.0f);
      if (applies) {
        load(b_, part, kHalf);
        apply(a_, part, draw.scalars[index], ratio, index, 0);
      }
      if (index + 1 < kItemsPerDraw) load(a_, draw.parts[index + 1], 0);
      if (applies) apply(b_, part, draw.scalars[index], ratio, index, kHalf);
      if (part.has_grad && part.index == 0 && lane_id() == 0) {
        finish_tensor(args_, part, draw.scalars[index], coefficient);
      }
    }
  }

  // While it works on half of a leaf, the next half is read.
  static constexpr int kHalf = kLeafRows / 2;
  using Rows = Four<Rule, Types>[kHalf];

  __device__ __forceinline__ static void load(Rows& rows, const Part& part, int first) {
    if (!part.has_grad) return;
#pragma unroll
    for (int r = 0; r < kHalf; ++r) rows[r].load(part, first_of(first + r), Rule::kApplyMovesStates);
  }

  __device__ __forceinline__ void apply(Rows& rows, const Part& part, const PartScalars& scalars, float ratio,
                                        int index, int first) {
    typename Types::template Kept<GroupScalars> group = block_.tables.groups[part.group];
    TensorScalars tensor = scalars.values;
    tensor.lr *= ratio;
    const RandomBits bits{args_.rounding_seed, scalars.ordinal, static_cast<uint32_t>(scalars.step)};
    const auto* const updates = reinterpret_cast<const float*>(block_.ring.room(here_.slot, index));
#pragma unroll
    for (int r = 0; r < kHalf; ++r) {
      const int i = first_of(first + r);
      float update[4];
      load_four_from_slot(update, updates + i);
      rows[r].template visit<true, Rule::kApplyMovesStates>(part, i, bits, update,
                                                            [&](auto&, float u, float& p, auto& states) {
                                                              p = Rule::apply(group, tensor, u, p, states);
                                                              return 0.0f;
                                                            });
    }
  }

  // False where it loses patience.
  __device__ bool wait_for_ratios(const Draw& draw, Scales& scales) const {
    scales = {0.0f, 1.0f};
    const uint64_t* ratio = nullptr;
    if (lane_id() < kItemsPerDraw && draw.parts[lane_id()].has_grad) {
      const Part& part = draw.parts[lane_id()];
      scales.coefficient = unclipped_coefficient(unscaling(args_.scaler));
      if (part.waits) {
        const uint64_t word = load_relaxed(&args_.workspace.coefficients[part.coefficient]);
        scales.coefficient = float_from_bits(payload(word));
      }
      if (!(scales.coefficient < 0.0f)) ratio = &args_.workspace.ratios[part.tensor];
    }
    long long since = clock64();
    for (;;) {
      const uint64_t word = ratio != nullptr ? load_relaxed(ratio) : tag(block_.epoch, 0);
      if (__all_sync(kFullWarp, has_epoch(word, block_.epoch))) {
        scales.ratio = float_from_bits(payload(word));
        return true;
      }
      if (__any_sync(kFullWarp, clock64() - since < kPatienceCycles)) continue;
      if (!block_.all_prepared()) return false;
      since = clock64();
    }
  }

  __device__ void postpone(uint32_t draw) const {
    if (lane_id() == 0) {
      __threadfence();  // the states have been moved, and are recalled by another block
      const uint32_t at = atomicAdd(&args_.workspace.counters->n_postponed, 1u);
      store_relaxed(&args_.workspace.postponed[at], tag(block_.epoch, draw));
    }
  }

  const Block& block_;
  const StepArgs& args_;
  Cursor here_;
  Rows a_, b_;
};

}  // namespace bertadam::cuda
