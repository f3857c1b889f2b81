// The engine: one launch that draws the plan's work items in order and executes them, with any number of blocks.
//
// A block that waits for a coefficient waits for items that running blocks have drawn (core/plan.h); it may hold
// one ticket ahead, which comes after the one it works on and so delays nobody it waits for. No float atomics, no
// order that depends on timing: whoever brings a tensor's last partial sum adds them all up in the canonical tree.
#pragma once

#include "core/rules/clip.h"
#include "core/rules/descent.h"
#include "core/step_args.h"
#include "cuda/reduce.cuh"
#include "cuda/tuning.h"

namespace bertadam::cuda {

// `step.rows` and `step.groups` are null where the table travels inline: groups first, then rows.
struct KernelArgs {
  StepArgs step;
  alignas(16) unsigned char table[kInlineBytes];
};
static_assert(sizeof(KernelArgs) <= 32764, "the limit of kernel parameters");

__device__ __forceinline__ uint64_t load_relaxed(const uint64_t* address) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(address) : "memory");
  return word;
}

__device__ __forceinline__ void store_relaxed(uint64_t* address, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(word) : "memory");
}

// Releases this thread's writes and acquires those of everyone who arrived before.
__device__ __forceinline__ uint32_t add_one(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// True for whoever brings the `n`-th arrival; leaves the counter at zero.
__device__ __forceinline__ bool arrives_last(uint32_t* arrivals, uint32_t n) {
  if (n == 1) return true;
  if (add_one(arrivals) + 1 < n) return false;
  *arrivals = 0;
  return true;
}

template <class Rule, class Types>
class Worker {
 public:
  struct Shared {
    double leaves[kChunkLeaves];
    TensorScalars scalars;
    float coefficient;
    bool last;
    uint32_t ticket;
    uint32_t epoch;
  };

  __device__ Worker(const KernelArgs& args, Shared& shared)
      : args_(args.step),
        workspace_(args.step.workspace),
        groups_(args_.groups ? args_.groups : reinterpret_cast<const GroupScalars*>(args.table)),
        rows_(args_.rows ? args_.rows : reinterpret_cast<const TensorRow*>(groups_ + args_.n_groups)),
        shared_(shared) {}

  __device__ void run() {
    const bool leader = threadIdx.x == 0;
    const bool draws = threadIdx.x == kThreads - 32;  // not the leader's warp, which has waits of its own
    if (leader) shared_.epoch = *workspace_.epoch + 1;
    if (draws) shared_.ticket = atomicAdd(workspace_.ticket, 1u);
    __syncthreads();
    for (uint32_t ticket; (ticket = shared_.ticket) < args_.n_items;) {
      __syncthreads();
      // The next one, while this one is worked on: the atomic's latency is hidden.
      if (draws) shared_.ticket = atomicAdd(workspace_.ticket, 1u);
      const WorkItem item = args_.items[ticket];
      if (item.is(kNorm)) norm(item);
      if (item.is(kUpdate)) update(item);
      __syncthreads();
    }
    if (leader && arrives_last(workspace_.workers_done, args_.n_workers)) {
      *workspace_.ticket = 0;
      *workspace_.epoch = shared_.epoch;
    }
  }

 private:
  // Every thread returns what the leader found; also a barrier.
  __device__ bool broadcast(bool leader_value) {
    __syncthreads();
    if (threadIdx.x == 0) shared_.last = leader_value;
    __syncthreads();
    return shared_.last;
  }

  __device__ void norm(const WorkItem item) {
    const PlanTensor& tensor = args_.tensors[item.tensor];
    const auto* const grad = static_cast<const typename Types::Grad*>(rows_[item.tensor].grad);
    if (grad == nullptr) {
      if (item.chunk() == 0) finish_norm(item.tensor, tensor, false, 0.0);
      return;
    }
    const int64_t begin = static_cast<int64_t>(item.chunk()) * kChunkElements;
    const int warp = threadIdx.x / 32;
    const int64_t rest = tensor.n_elements - begin - warp * kLeafElements;
    double sum = 0.0;
    if (rest > 0) {
      const int n = rest < kLeafElements ? static_cast<int>(rest) : kLeafElements;
      sum = warp_leaf_sum(grad + begin + warp * kLeafElements, n);
    }
    if (threadIdx.x % 32 == 0) shared_.leaves[warp] = sum;
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
      sum = pairwise(shared_.leaves);
      if (tensor.n_chunks == 1) {
        last = true;
      } else {
        workspace_.nodes[tensor.first_node + item.chunk()] = sum;
        last = arrives_last(&workspace_.norm_arrivals[item.tensor], tensor.n_chunks);
      }
    }
    if (!broadcast(last)) return;
    if (tensor.n_chunks > 1) sum = block_pairwise_sum(workspace_.nodes + tensor.first_node, tensor.n_chunks);
    finish_norm(item.tensor, tensor, true, sum);
  }

  __device__ static double pairwise(const double (&leaves)[kChunkLeaves]) {
    double x[kChunkLeaves];
#pragma unroll
    for (int k = 0; k < kChunkLeaves; ++k) x[k] = leaves[k];
#pragma unroll
    for (int width = kChunkLeaves / 2; width > 0; width /= 2) {
#pragma unroll
      for (int k = 0; k < width; ++k) x[k] = x[2 * k] + x[2 * k + 1];
    }
    return x[0];
  }

  // `sum` counts in the leader.
  __device__ void finish_norm(uint32_t index, const PlanTensor& tensor, bool has_grad, double sum) {
    bool last = false;
    if (threadIdx.x == 0) {
      const double norm = has_grad ? sqrt(sum) : nan("");
      if (tensor.needs_norm) args_.statistics.norms[index] = norm;
      if (!has_grad) args_.statistics.coefficients[index] = nanf("");
      if (args_.wait_for_all) {
        workspace_.nodes[args_.total_tree + index] = sum;
        last = arrives_last(workspace_.tensors_summed, args_.n_tensors);
      } else if (has_grad) {
        publish(index, coefficient(tensor, norm));
      }
    }
    if (args_.wait_for_all && broadcast(last)) finish_all_norms();
  }

  __device__ void finish_all_norms() {
    const double total = block_pairwise_sum(workspace_.nodes + args_.total_tree, args_.n_tensors);
    const bool null_step = args_.skip_if_all_zero && total == 0.0;
    const double total_norm = sqrt(total);
    if (threadIdx.x == 0) *args_.statistics.total_norm = total_norm;
    for (uint32_t i = threadIdx.x; i < args_.n_tensors; i += blockDim.x) {
      if (rows_[i].grad == nullptr) continue;
      const double norm = args_.clip_by_total_norm ? total_norm : __ldcg(args_.statistics.norms + i);
      publish(i, null_step ? kNullStep : coefficient(args_.tensors[i], norm));
    }
  }

  // `norm`: of the tensor, or of all of them where they are clipped together.
  __device__ float coefficient(const PlanTensor& tensor, double norm) {
    return clip_coefficient(norm, groups_[tensor.group].max_grad_norm, args_.skip_nonfinite && tensor.needs_norm);
  }

  __device__ void publish(uint32_t index, float coefficient) {
    args_.statistics.coefficients[index] = coefficient < 0.0f ? 0.0f : coefficient;
    store_relaxed(&workspace_.coefficients[index], tag_coefficient(shared_.epoch, coefficient));
  }

  __device__ float wait_for_coefficient(uint32_t index) {
    for (;;) {
      const uint64_t word = load_relaxed(&workspace_.coefficients[index]);
      if (static_cast<uint32_t>(word >> 32) == shared_.epoch) return untag_coefficient(word);
      __nanosleep(100);
    }
  }

  __device__ void update(const WorkItem item) {
    const PlanTensor& tensor = args_.tensors[item.tensor];
    const TensorRow& row = rows_[item.tensor];
    if (row.grad == nullptr) return;
    const bool waits = tensor.needs_norm || args_.wait_for_all;
    if (threadIdx.x == 0) {
      shared_.coefficient = waits ? wait_for_coefficient(item.tensor) : 1.0f;
      shared_.scalars = tensor_scalars(groups_[tensor.group], row, shared_.coefficient);
    }
    __syncthreads();
    const float coefficient = shared_.coefficient;
    const bool applied = !(coefficient < 0.0f);
    if (applied) {
      const int64_t begin = static_cast<int64_t>(item.chunk()) * kChunkElements;
      const int64_t rest = tensor.n_elements - begin;
      update_elements(groups_[tensor.group], shared_.scalars, row, begin,
                      rest < kChunkElements ? static_cast<int>(rest) : kChunkElements);
    }
    // The step is read above and written by the last chunk's worker, after everyone has arrived.
    if (threadIdx.x != 0 || !arrives_last(&workspace_.update_arrivals[item.tensor], tensor.n_chunks)) return;
    if (applied) {
      *row.step += 1.0f;
    } else if (coefficient == kSkipped) {
      atomicAdd(reinterpret_cast<unsigned long long*>(args_.statistics.n_skipped), 1ull);
    }
  }

  __device__ static void update_elements(const GroupScalars& group, const TensorScalars& scalars, const TensorRow& row,
                                         int64_t begin, int n) {
    auto* const param = static_cast<typename Types::Param*>(row.param) + begin;
    const auto* const grad = static_cast<const typename Types::Grad*>(row.grad) + begin;
    typename Types::State* state[Rule::kNumStates];
    bool whole = n == kChunkElements && is_aligned(param) && is_aligned(grad);
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) {
      state[k] = static_cast<typename Types::State*>(row.states[k]) + begin;
      whole = whole && is_aligned(state[k]);
    }
    if (whole) {
#pragma unroll 1
      for (int i = 4 * threadIdx.x; i < kChunkElements; i += 4 * kThreads) {
        update4<true>(group, scalars, param + i, grad + i, state, i, 4);
      }
    } else {
#pragma unroll 1
      for (int i = 4 * threadIdx.x; i < n; i += 4 * kThreads) {
        update4<false>(group, scalars, param + i, grad + i, state, i, n - i);
      }
    }
  }

  template <bool kWhole, class Param, class Grad, class State>
  __device__ __forceinline__ static void update4(const GroupScalars& group, const TensorScalars& scalars, Param* param,
                                                 const Grad* grad, State* const (&state)[Rule::kNumStates], int i,
                                                 int n) {
    float p[4], g[4], s[Rule::kNumStates][4];
    load4<kWhole>(p, param, n);
    load4<kWhole>(g, grad, n);
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) load4<kWhole>(s[k], state[k] + i, n);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float states[Rule::kNumStates];
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) states[k] = s[k][j];
      p[j] = descend(p[j], scalars.lr, Rule::update(group, scalars, g[j], p[j], states));
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) s[k][j] = states[k];
    }
    store4<kWhole>(param, p, n);
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) store4<kWhole>(state[k] + i, s[k], n);
  }

  const StepArgs& args_;
  const Workspace& workspace_;
  const GroupScalars* const groups_;
  const TensorRow* const rows_;
  Shared& shared_;
};

template <class Rule, class Types>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) step_kernel(const __grid_constant__ KernelArgs args) {
  __shared__ typename Worker<Rule, Types>::Shared shared;
  Worker<Rule, Types>(args, shared).run();
}

}  // namespace bertadam::cuda
