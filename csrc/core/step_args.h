// What a worker needs for one step, on any backend: views of memory that the binding owns and has checked.
#pragma once

#include <cstdint>

#include "core/dtypes.h"
#include "core/plan.h"
#include "core/random_bits.h"
#include "core/rules.h"
#include "core/rules/clip.h"
#include "core/scalars.h"

namespace bertadam {

// One tensor's memory but for its gradient, which may be elsewhere at every step. Tables of rows are compared as bytes:
// nothing in between is left unsaid.
struct TensorRow {
  void* param;
  void* master;  // null: none
  void* states[kMaxStates];
  float* step;
  const float* schedule_start;         // null: 0
  const float* bias_correction_start;  // null: 0
  uint32_t types;                      // see types_code
  uint32_t ordinal;                    // among the parameters of all groups and devices
};
static_assert(sizeof(TensorRow) == (5 + kMaxStates) * sizeof(void*) + 2 * sizeof(uint32_t), "no padding");

// Scratch of one (device, stream). Counters and arrivals start at zero, and every step leaves them so (but for the
// epoch, which it advances); the rest may hold anything, since what a step reads carries its epoch or was counted.
struct Counters {
  uint32_t ticket;          // the next draw; on a GPU counted from the first that is not leading,
  uint32_t leading_ticket;  // since those are drawn apart
  uint32_t workers_done;
  uint32_t epoch;  // tags the words of this step; advanced by the last worker
  uint32_t n_postponed;
  uint32_t n_resumed;
};
struct Workspace {
  Counters* counters;
  double* nodes;           // the norm trees, see Plan::n_nodes; on a GPU two words each, {epoch, half of the double}
  uint32_t* arrivals;      // [node] children whose sums are there; start at zero and are left so
  uint64_t* coefficients;  // [tensor], or [group] where they are clipped together: epoch << 32 | float bits
  uint64_t* postponed;     // [draw] epoch << 32 | draw: updates that a GPU's worker put off to go on with norms
  // With surveys: the trees of a tensor's two sums, side by side in each node, and what comes of them.
  double* survey_nodes;
  uint32_t* survey_arrivals;
  uint64_t* ratios;  // [tensor] epoch << 32 | float bits
};

// Written by the step, read by the user. `norms` starts as NaN; tensors that no norm is taken of keep it.
struct Statistics {
  double* norms;        // [tensor]
  double* total_norm;   // [1]
  float* coefficients;  // [tensor]
  float* trust_ratios;  // [tensor], of a rule that has one
  int64_t* n_skipped;   // [1], updates left out since the optimizer was made
};

// What a scaler gives to a step, and asks of it; any may be null.
struct ScalerArgs {
  const float* grad_scale;  // what the loss was multiplied by, so the gradients are: null means 1
  const float* found_inf;   // unless it is 0, the step leaves everything as it is; null means 0
  float* finds_inf;         // where the step writes 1 if some gradient is not finite, which makes it skip, or else 0
};

struct StepArgs {
  const WorkItem* items;
  const PlanTensor* tensors;
  const uint32_t* large;  // the plan's
  const GroupScalars* groups;
  const TensorRow* rows;
  const void* const* grads;  // null: the tensor takes no part in this step
  uint32_t n_draws, n_tensors, n_groups, n_large;
  uint32_t n_leading;       // the plan's
  uint32_t n_preparing;     // the plan's
  int64_t total_tree;       // first node of the tree over the tensors' sums
  uint32_t n_workers;       // on a CPU
  bool has_norms;           // the plan's
  bool wait_for_all;        // the plan's
  bool clip_by_total_norm;  // else by the tensor's own
  bool skip_nonfinite;
  bool skip_if_all_zero;  // a step with every learning rate 0: with every gradient 0 as well, it does not count
  uint64_t rounding_seed;
  ScalerArgs scaler;  // with finds_inf, wait_for_all is true
  Workspace workspace;
  Statistics statistics;

  // Whether an update has to wait for a coefficient.
  BERTADAM_HD bool waits(const PlanTensor& tensor) const { return tensor.needs_norm || wait_for_all; }
  // Which of the workspace's coefficients is a tensor's. One norm and one limit make one for a whole group.
  BERTADAM_HD uint32_t coefficient_of(uint32_t tensor, uint32_t group) const {
    return clip_by_total_norm ? group : tensor;
  }
};

// Never 0: fresh memory is full of it.
BERTADAM_HD uint32_t epoch_after(uint32_t epoch) { return epoch + 1 != 0 ? epoch + 1 : 1; }

// A payload and the epoch it belongs to in one word, so that whoever sees the one sees the other.
BERTADAM_HD uint64_t tag(uint32_t epoch, uint32_t payload) { return uint64_t{epoch} << 32 | payload; }
BERTADAM_HD bool has_epoch(uint64_t word, uint32_t epoch) { return static_cast<uint32_t>(word >> 32) == epoch; }
BERTADAM_HD uint32_t payload(uint64_t word) { return static_cast<uint32_t>(word); }

BERTADAM_HD TensorScalars tensor_scalars(const GroupScalars& group, const TensorRow& row, float clip_coefficient) {
  return tensor_scalars(group, clip_coefficient, *row.step, row.schedule_start ? *row.schedule_start : 0.0f,
                        row.bias_correction_start ? *row.bias_correction_start : 0.0f);
}

BERTADAM_HD Unscaling unscaling(const ScalerArgs& scaler) {
  return unscaling(scaler.grad_scale ? *scaler.grad_scale : 1.0f, scaler.found_inf ? *scaler.found_inf : 0.0f);
}

// Of a step that waits for all norms, from the sum of all squares: a code where it leaves everything as it is, else 0.
BERTADAM_HD float code_of_step(const StepArgs& args, const Unscaling& unscale, double sum_of_squares) {
  const bool found_inf = args.scaler.finds_inf != nullptr && !all_finite(sum_of_squares);
  if (unscale.skips_step || found_inf) return kSkipped;
  return args.skip_if_all_zero && sum_of_squares == 0.0 ? kNullStep : 0.0f;
}

BERTADAM_HD Clipping clipping(const StepArgs& args, const GroupScalars& group) {
  return {group.max_grad_norm, group.clip_epsilon, group.normalizes, args.skip_nonfinite && group.needs_norm};
}

// What a stochastic store draws in this update.
BERTADAM_HD RandomBits random_bits(const StepArgs& args, const TensorRow& row) {
  return {args.rounding_seed, row.ordinal, static_cast<uint32_t>(*row.step)};
}

}  // namespace bertadam
