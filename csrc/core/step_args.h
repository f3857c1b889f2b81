// What a worker needs for one step, on any backend: views of memory that the binding owns and has checked.
#pragma once

#include <cstdint>

#include "core/dtypes.h"
#include "core/plan.h"
#include "core/scalars.h"

namespace bertadam {

constexpr int kMaxStates = 2;

// One tensor's memory, read anew at every step. A null gradient: the tensor takes no part in this step.
struct TensorRow {
  void* param;
  const void* grad;
  void* states[kMaxStates];
  float* step;
  const float* schedule_start;         // null: 0
  const float* bias_correction_start;  // null: 0
};

// Scratch of one (device, stream). Zeroed once; every step leaves it ready for the next one.
struct Workspace {
  uint32_t* ticket;  // the next item to draw
  uint32_t* workers_done;
  uint32_t* epoch;            // tags the coefficients of this step; advanced by the last worker
  uint32_t* tensors_summed;   // arrivals towards the sum over all tensors
  uint32_t* norm_arrivals;    // [tensor] chunks summed
  uint32_t* update_arrivals;  // [tensor] chunks updated
  uint64_t* coefficients;     // [tensor] epoch << 32 | float bits
  double* nodes;              // the norm trees, see Plan::n_nodes
};

// Written by the step, read by the user. `norms` starts as NaN; tensors that no norm is taken of keep it.
struct Statistics {
  double* norms;        // [tensor]
  double* total_norm;   // [1]
  float* coefficients;  // [tensor]
  int64_t* n_skipped;   // [1], updates left out since the optimizer was made
};

struct StepArgs {
  const WorkItem* items;
  const PlanTensor* tensors;
  const GroupScalars* groups;
  const TensorRow* rows;
  uint32_t n_items, n_tensors, n_groups;
  uint32_t chunk_elements;
  int64_t total_tree;  // first node of the tree over the tensors' sums
  uint32_t n_workers;
  bool wait_for_all;        // the plan's
  bool clip_by_total_norm;  // else by the tensor's own
  bool skip_nonfinite;
  bool skip_if_all_zero;  // a step with every learning rate 0: with every gradient 0 as well, it does not count
  Workspace workspace;
  Statistics statistics;
};

BERTADAM_HD uint64_t tag_coefficient(uint32_t epoch, float coefficient) {
  return uint64_t{epoch} << 32 | float_bits(coefficient);
}

BERTADAM_HD float untag_coefficient(uint64_t word) { return float_from_bits(static_cast<uint32_t>(word)); }

BERTADAM_HD TensorScalars tensor_scalars(const GroupScalars& group, const TensorRow& row, float clip_coefficient) {
  return tensor_scalars(group, clip_coefficient, *row.step, row.schedule_start ? *row.schedule_start : 0.0f,
                        row.bias_correction_start ? *row.bias_correction_start : 0.0f);
}

}  // namespace bertadam
