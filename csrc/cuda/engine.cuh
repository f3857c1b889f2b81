// The engine: one launch does a whole step. A block is a producer warp (producer.cuh) that fills a ring of draws
// (ring.cuh), norm warps that run ahead (norms.cuh), and update warps that follow (updates.cuh) and find the gradients
// still on chip. Which block does what depends on timing; what is computed does not.
#pragma once

#include "cuda/norms.cuh"
#include "cuda/producer.cuh"
#include "cuda/ring.cuh"
#include "cuda/updates.cuh"

namespace bertadam::cuda {

// `step.groups` and `step.grads` are null where they travel inline: groups first, then gradients.
struct KernelArgs {
  StepArgs step;
  uint32_t n_slots;
  alignas(16) unsigned char table[kInlineBytes];
};
static_assert(sizeof(KernelArgs) <= 32764, "the limit of kernel parameters");

// By all threads of the last block, when nobody reads a step or a counter any more.
__device__ inline void finish_step(const Block& block) {
  const StepArgs& args = block.args;
  for (uint32_t i = threadIdx.x; i < args.n_large; i += kThreads) {
    const uint32_t tensor = args.large[i];
    if (block.grads[tensor] == nullptr) continue;
    const PlanTensor& planned = args.tensors[tensor];
    float coefficient = 1.0f;
    if (args.waits(planned)) {
      const uint64_t word = load_relaxed(&args.workspace.coefficients[args.coefficient_of(tensor, planned.group)]);
      coefficient = float_from_bits(payload(word));
    }
    if (!(coefficient < 0.0f)) *args.rows[tensor].step += 1.0f;
  }
  if (threadIdx.x == 0) *args.workspace.counters = Counters{0, 0, block.epoch, 0, 0};
}

template <class Rule, class Types>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ double scratch[kNormWarps + 1][kLeaves];
  __shared__ bool is_last;
  const StepArgs& step = args.step;
  const auto* const groups = step.groups ? step.groups : reinterpret_cast<const GroupScalars*>(args.table);
  const auto* const grads = step.grads ? step.grads : reinterpret_cast<const void* const*>(groups + step.n_groups);
  const uint32_t epoch = step.workspace.counters->epoch + 1;
  const Block block{step, groups, grads, RingMemory(memory, args.n_slots), args.n_slots, epoch};
  if (threadIdx.x == 0) {
    for (uint32_t slot = 0; slot < args.n_slots; ++slot) {
      block.ring.full[slot].init(1);
      block.ring.ready[slot].init(1);
      block.ring.empty[slot].init(kUpdateWarps + 1);
    }
    fence_barrier_init();
  }
  __syncthreads();

  const int warp = static_cast<int>(threadIdx.x / 32);
  if (warp < kUpdateWarps) {
    UpdateWarp<Rule>(block, warp).run();
  } else if (warp == kProducerWarp) {
    Producer(block).run(scratch[kNormWarps]);
  } else {
    NormWarp(block, warp - kFirstNormWarp).run(scratch[warp - kFirstNormWarp]);
  }

  __syncthreads();
  if (threadIdx.x == 0) is_last = add_one_ordered(&step.workspace.counters->workers_done) + 1 == step.n_workers;
  __syncthreads();
  if (is_last) finish_step(block);
}

}  // namespace bertadam::cuda
