// The role of a survey warp, in steps of a rule with a trust ratio: a leaf in every second draw. It moves the moments,
// leaves the update in the gradient's place, on chip, and adds up the squares of parameters and updates. Updates that
// were not kept there it recalls from the states, once their ratio is known.
#pragma once

#include "core/rules/new_param.h"
#include "cuda/four.cuh"
#include "cuda/norms.cuh"
#include "cuda/updates.cuh"

namespace bertadam::cuda {

static_assert(kUpdateWarps == 2 * kItemsPerDraw, "a leaf in every second draw");
static_assert(kLeafRows == 2 * kVectors, "the second half of a leaf is read ahead during the first");
constexpr int kRowElements = 128;

template <class Rule, class Types>
class SurveyWarp {
 public:
  __device__ SurveyWarp(const Block& block, int which)
      : block_(block), args_(block.tables.args), which_(which), leaf_(which % kItemsPerDraw) {}

  __device__ void run(double* scratch) {
    here_ = sum_leading_norms<Types>(block_, which_, kUpdateWarps, scratch, [this](uint32_t slot) { pass(slot); });
    for (bool turn = which_ < kItemsPerDraw;; turn = !turn) {
      block_.ring.full[here_.slot].wait(here_.parity);
      const Draw& draw = block_.ring.draws[here_.slot];
      if (draw.kinds == 0) return;
      if (turn && draw.parts[leaf_].has_grad) work(draw);
      pass(here_.slot);
      here_.advance(1, block_.n_slots);
    }
  }

 private:
  // Every warp passes every slot, so that it misses no phase of a barrier.
  __device__ void pass(uint32_t slot) const {
    __syncwarp();
    if (lane_id() == 0) {
      block_.ring.surveyed[slot].arrive();
      block_.ring.empty[slot].arrive();
    }
  }

  __device__ void work(const Draw& draw) {
    const Part& part = draw.parts[leaf_];
    const bool surveys = (draw.kinds & kSurvey) != 0;
    const float coefficient = part.waits ? wait_for(&args_.workspace.coefficients[part.coefficient])
                                         : unclipped_coefficient(unscaling(args_.scaler));
    block_.ring.ready[here_.slot].wait(here_.parity);
    const PartScalars& scalars = draw.scalars[leaf_];
    if (coefficient < 0.0f) {
      is_loaded_ = false;
    } else if (surveys) {
      survey(part, scalars, coefficient);
    } else {
      recall(part, scalars, coefficient);
    }
    if (!surveys && part.index == 0 && lane_id() == 0) finish_tensor(args_, part, scalars, coefficient);
  }

  __device__ __forceinline__ void survey(const Part& part, const PartScalars& scalars, float coefficient) {
    typename Types::template Kept<GroupScalars> group = block_.tables.groups[part.group];
    TensorScalars tensor = scalars.values;
    tensor.grad_scale *= coefficient;
    auto* const kept = reinterpret_cast<float*>(room());
    double sums[8] = {};  // of the lane's four accumulators: parameters, updates
    rows(part, Rule::kSurveyMovesStates, [&](Four<Rule, Types>& row, int i) {
      float grads[4];
      load_grads(part, i, grads);
      const auto visited = row.template visit<false, Rule::kSurveyMovesStates>(
          part, i, RandomBits{}, grads,
          [&](auto& math, float g, float p, auto& states) { return Rule::survey(math, group, tensor, g, p, states); });
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const double p = visited.params[k], u = visited.results[k];
        sums[k] = fma(p, p, sums[k]);
        sums[4 + k] = fma(u, u, sums[4 + k]);
      }
      __syncwarp();  // the others have read their gradients
      store_four_to_slot(kept + i, visited.results);
    });
    halve<8, 16>(sums);
    double sum = sums[0];
    sum += __shfl_xor_sync(kFullWarp, sum, 8);
    sum += __shfl_xor_sync(kFullWarp, sum, 4);
    if (lane_id() % 16 == 0) block_.ring.draws[here_.slot].sums[leaf_][lane_id() / 16] = sum;
  }

  __device__ __forceinline__ void recall(const Part& part, const PartScalars& scalars, float coefficient) {
    typename Types::template Kept<GroupScalars> group = block_.tables.groups[part.group];
    TensorScalars tensor = scalars.values;
    tensor.grad_scale *= coefficient;
    tensor.lr *= wait_for(&args_.workspace.ratios[part.tensor]);
    if (recalled_ != part.tensor) {
      __threadfence();  // the states that other blocks have moved
      recalled_ = part.tensor;
    }
    const RandomBits bits{args_.rounding_seed, scalars.ordinal, static_cast<uint32_t>(scalars.step)};
    rows(part, true, [&](Four<Rule, Types>& row, int i) {
      float grads[4] = {};
      if constexpr (Rule::kRecallsGrad) load_grads(part, i, grads);
      row.template visit<true, Rule::kApplyMovesStates>(part, i, bits, grads,
                                                        [&](auto& math, float g, float& p, auto& states) {
                                                          p = new_param<Rule>(math, group, tensor, g, p, states);
                                                          return 0.0f;
                                                        });
    });
  }

  // Calls `work` for every row; while it works on one, the half of a leaf behind it is read, of the next leaf as well.
  template <class Work>
  __device__ __forceinline__ void rows(const Part& part, bool with_states, Work work) {
    const int first = 4 * lane_id();
    if (!is_loaded_) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) window_[v].load(part, first + v * kRowElements, with_states);
    }
    const Part* next = &part;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      if (half == 1) next = next_part();
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int i = first + (half * kVectors + v) * kRowElements;
        work(window_[v], i);
        constexpr int kHalf = kVectors * kRowElements;
        if (next != nullptr) window_[v].load(*next, half == 0 ? i + kHalf : i - kHalf, with_states);
      }
    }
    is_loaded_ = next != nullptr;
  }

  // Of this warp's next draw, if that is here and may be read: an update only if its states are known to be.
  __device__ const Part* next_part() const {
    Cursor next = here_;
    next.advance(2, block_.n_slots);
    if (!__all_sync(kFullWarp, block_.ring.full[next.slot].is_over(next.parity))) return nullptr;
    const Draw& draw = block_.ring.draws[next.slot];
    const Part& part = draw.parts[leaf_];
    const bool same_kind = (draw.kinds & kSurvey) == (block_.ring.draws[here_.slot].kinds & kSurvey);
    if (draw.kinds == 0 || !same_kind || !part.has_grad) return nullptr;
    return (draw.kinds & kSurvey) != 0 || part.tensor == recalled_ ? &part : nullptr;
  }

  __device__ unsigned char* room() const { return block_.ring.room(here_.slot, leaf_); }

  __device__ __forceinline__ void load_grads(const Part& part, int i, float (&grads)[4]) const {
    Types::with_grad(part.types, [&](auto element) {
      const auto* const placed = static_cast<const decltype(element)*>(placed_grads<Types>(room(), part.types));
      load_four_from_slot(grads, placed + i);
    });
  }

  __device__ float wait_for(const uint64_t* address) const {
    uint64_t word;
    do {
      word = load_relaxed(address);
    } while (!__all_sync(kFullWarp, has_epoch(word, block_.epoch)));
    return float_from_bits(payload(word));
  }

  const Block& block_;
  const StepArgs& args_;
  const int which_, leaf_;
  Cursor here_{0};
  Four<Rule, Types> window_[kVectors];  // rows that are read ahead
  bool is_loaded_ = false;              // the first half of the leaf to come is
  uint32_t recalled_ = kNoTensor;       // the last tensor whose updates were recalled
};

}  // namespace bertadam::cuda
