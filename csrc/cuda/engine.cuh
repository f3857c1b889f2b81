// The engine: one launch does a whole step. A block is a producer warp (producer.cuh) that fills a ring of draws
// (ring.cuh), norm warps that run ahead (norm_warp.cuh), and update warps that follow (update_warp.cuh) and find the
// gradients still on chip. Norms whose gradients cannot be kept lead the list, and warps that have nothing else to do
// yet take them straight from memory (norms.cuh): those of a tensor that is too large, or all, where all are waited
// for. In the latter case the ring has updates alone, and a short one leaves L1 more room. Which block does what
// depends on timing; what is computed does not.
#pragma once

#include "cuda/kernels.h"
#include "cuda/norm_warp.cuh"
#include "cuda/norms.cuh"
#include "cuda/producer.cuh"
#include "cuda/ring.cuh"
#include "cuda/update_warp.cuh"

namespace bertadam::cuda {

// `step.groups` and `step.grads` are null where they travel inline: groups first, then gradients.
template <size_t kTableBytes>
struct ArgsWithTable {
  StepArgs step;
  uint32_t n_slots;
  alignas(16) unsigned char table[kTableBytes];
};
struct LargeArgs : ArgsWithTable<kLargeTableBytes> {};
static_assert(sizeof(LargeArgs) <= 32764, "the limit of kernel parameters");

// For small tables, and for every node of a CUDA graph. Drivers take kernels with more than 4 KB of arguments, graphs
// of them not always: adding such a node crashed with CUDA 12 (openxla/xla#19252), and torch's multi_tensor_apply
// avoided them while a stream captures.
struct SmallArgs : ArgsWithTable<kSmallTableBytes> {};
static_assert(sizeof(SmallArgs) <= 4096, "the limit of kernel parameters before CUDA 12.1");

template <size_t kTableBytes>
__device__ __forceinline__ Tables tables_of(const ArgsWithTable<kTableBytes>& args) {
  const auto* const groups = args.step.groups ? args.step.groups : reinterpret_cast<const GroupScalars*>(args.table);
  const auto* const grads =
      args.step.grads ? args.step.grads : reinterpret_cast<const void* const*>(groups + args.step.n_groups);
  return {args.step, groups, grads};
}

// By all threads of the last block, when nobody reads a step or a counter any more.
__device__ __forceinline__ void finish_step(const Tables& tables, uint32_t epoch) {
  const StepArgs& args = tables.args;
  for (uint32_t i = threadIdx.x; i < args.n_large; i += blockDim.x) {
    const uint32_t tensor = args.large[i];
    if (tables.grads[tensor] == nullptr) continue;
    const PlanTensor& planned = args.tensors[tensor];
    float coefficient = unclipped_coefficient(unscaling(args.scaler));
    if (args.waits(planned)) {
      const uint64_t word = load_relaxed(&args.workspace.coefficients[args.coefficient_of(tensor, planned.group)]);
      coefficient = float_from_bits(payload(word));
    }
    if (!(coefficient < 0.0f)) *args.rows[tensor].step += 1.0f;
  }
  if (threadIdx.x == 0) *args.workspace.counters = Counters{0, 0, 0, epoch, 0, 0};
}

// By all threads. `n_readers`: warps that release each slot.
template <class Types>
__device__ __forceinline__ Block begin_block(const Tables& tables, unsigned char* memory, uint32_t n_slots,
                                             uint32_t n_readers) {
  const Block block{tables, RingMemory(memory, n_slots, Types::kMostGradBytes), n_slots,
                    epoch_after(tables.args.workspace.counters->epoch)};
  if (threadIdx.x == 0) {
    for (uint32_t slot = 0; slot < n_slots; ++slot) {
      block.ring.full[slot].init(1);
      block.ring.ready[slot].init(1);
      block.ring.surveyed[slot].init(kUpdateWarps);
      block.ring.empty[slot].init(n_readers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  return block;
}

__device__ __forceinline__ void end_block(const Block& block) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = add_one_ordered(&block.tables.args.workspace.counters->workers_done) + 1 == gridDim.x;
  }
  __syncthreads();
  if (is_last) finish_step(block.tables, block.epoch);
}

// Whether a warp takes leading norms before it takes up its role. Update warps do, since no coefficient is there yet;
// norm warps only where most norms lead. Else the ring's are what updates wait for first: BERT-large took 3180 us
// clipped per tensor, 3189 where norm warps led, too. To leave all that lead to norm warps with no slot to sum, beside
// updates, took 3191.
__device__ __forceinline__ bool leads(const StepArgs& args, int warp) {
  if (warp < kUpdateWarps) return true;
  return warp != kProducerWarp && args.n_preparing - args.n_leading < args.n_leading;
}

template <class Rule, class Types, class Args>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ double scratch[kThreads / 32][kLeaves];
  const Tables tables = tables_of(args);
  const Block block = begin_block<Types>(tables, memory, args.n_slots, kUpdateWarps + 1);
  const int warp = static_cast<int>(threadIdx.x / 32);
  if (leads(args.step, warp)) sum_leading_norms<Rule, Types>(block, scratch[warp]);
  if (warp < kUpdateWarps) {
    UpdateWarp<Rule, Types>(block, warp).run();
  } else if (warp == kProducerWarp) {
    Producer<Rule, Types>(block).run(scratch[warp]);
  } else {
    NormWarp<Types>(block, warp - kFirstNormWarp).run(scratch[warp]);
  }
  end_block(block);
}

template <class Rule, class Types>
Instance instance() {
  return {step_kernel<Rule, Types, SmallArgs>, step_kernel<Rule, Types, LargeArgs>, Types::kMostGradBytes};
}

}  // namespace bertadam::cuda
