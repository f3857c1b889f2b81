// The role of a survey warp, in steps of a rule with a trust ratio: a leaf in every second draw. It moves the moments,
// leaves the update in the gradient's place, on chip, and adds up the squares of parameters and updates. Updates that
// were not kept there it recalls from the states, once their ratio is known.
#pragma once

#include "core/rules/new_param.h"
#include "cuda/four.cuh"
#include "cuda/leaves.cuh"
#include "cuda/updates.cuh"

namespace bertadam::cuda {

static_assert(kUpdateWarps == 2 * kItemsPerDraw, "a leaf in every second draw");
static_assert(kLeafRows % (2 * kRowsAhead) == 0, "a leaf begins with the same registers");

template <class Rule, class Types>
class SurveyWarp {
 public:
  __device__ SurveyWarp(const Block& block, int which)
      : block_(block), args_(block.tables.args), which_(which), leaf_(which % kItemsPerDraw) {}

  __device__ void run() {
    for (bool turn = which_ < kItemsPerDraw;; turn = !turn) {
      block_.ring.full[here_.slot].wait(here_.parity);
      const Draw& draw = block_.ring.draws[here_.slot];
      if (draw.kinds == 0) return;
      if (turn && draw.parts[leaf_].has_grad) work(draw);
      pass(here_);
      here_.advance(1, block_.n_slots);
    }
  }

 private:
  // Every warp passes every slot, so that it misses no phase of a barrier.
  __device__ void pass(const Cursor& at) const {
    __syncwarp();
    if (lane_id() == 0) {
      block_.ring.surveyed[at.slot].see(at.parity ^ 1u);
      block_.ring.surveyed[at.slot].arrive();
      block_.ring.empty[at.slot].arrive();
    }
  }

  __device__ void work(const Draw& draw) {
    const Part& part = draw.parts[leaf_];
    const bool surveys = (draw.kinds & kSurvey) != 0;
    const float coefficient = coefficient_of(part);
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

  // Calls `work` for every row. While it works on some, the next ones are read, of the next leaf as well.
  template <class Work>
  __device__ __forceinline__ void rows(const Part& part, bool with_states, Work work) {
    if (!is_loaded_) load(a_, part, 0, with_states);
    const Part* next = &part;
#pragma unroll 1
    for (int row = 0; row < kLeafRows; row += 2 * kRowsAhead) {
      load(b_, part, row + kRowsAhead, with_states);
      visit(a_, row, work);
      const bool ends = row + 2 * kRowsAhead == kLeafRows;
      if (ends) next = next_part();
      if (next != nullptr) load(a_, *next, ends ? 0 : row + 2 * kRowsAhead, with_states);
      visit(b_, row + kRowsAhead, work);
    }
    is_loaded_ = next != nullptr;
  }

  using Rows = Four<Rule, Types>[kRowsAhead];

  __device__ __forceinline__ static void load(Rows& rows, const Part& part, int row, bool with_states) {
#pragma unroll
    for (int r = 0; r < kRowsAhead; ++r) rows[r].load(part, first_of(row + r), with_states);
  }

  template <class Work>
  __device__ __forceinline__ static void visit(Rows& rows, int row, Work work) {
#pragma unroll
    for (int r = 0; r < kRowsAhead; ++r) work(rows[r], first_of(row + r));
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

  // The look that it takes is half a microsecond; in most steps all tensors share a few coefficients.
  __device__ float coefficient_of(const Part& part) {
    if (!part.waits) return unclipped_coefficient(unscaling(args_.scaler));
    if (known_index_ != part.coefficient) {
      known_ = wait_for(&args_.workspace.coefficients[part.coefficient]);
      known_index_ = part.coefficient;
    }
    return known_;
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
  Rows a_, b_;                          // read ahead
  bool is_loaded_ = false;              // `a_`, with the first rows of the leaf to come
  uint32_t recalled_ = kNoTensor;       // the last tensor whose updates were recalled
  uint32_t known_index_ = 0xffffffffu;  // of the last coefficient
  float known_ = 0.0f;
};

}  // namespace bertadam::cuda
