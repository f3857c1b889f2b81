// The parts of draws, and the tables that they are read from.
#pragma once

#include <cstdint>

#include "core/step_args.h"
#include "cuda/tuning.h"
#include "cuda/types.cuh"

namespace bertadam::cuda {

__device__ __forceinline__ bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// One item of a draw, for the norm warp and the update warp that have it.
struct alignas(16) Part {
  void* param;   // its first element, the master's and the states'
  void* master;  // meaningless where the storage has none
  float* states[kMaxStates];
  float* step;  // to be advanced with the update; null for a tensor of several chunks
  uint32_t tensor;
  uint32_t index;  // part of the tensor
  int32_t n;       // elements; 0 for an empty tensor
  uint32_t group;
  uint32_t coefficient;  // which of the workspace's
  uint32_t n_chunks;     // of the tensor
  uint32_t types;        // of its row
  int64_t first_node;    // of the tensor's tree
  uint8_t n_in_run;      // parts of the tensor in this draw, from this one on
  bool needs_norm;
  bool exists;    // else the item fills up a draw
  bool has_grad;  // else the tensor takes no part in this step
  bool waits;     // for a coefficient
  bool aligned;   // parameter, master and states
};

// What an update needs beside: it takes two more dependent loads, which norms need not wait for.
struct PartScalars {
  TensorScalars values;  // without the clip coefficient
  float step;            // before the update
  uint32_t ordinal;
};

// What the tables say of a tensor: the same throughout a step, so a lane that meets it again need not read it again.
struct TensorEntry {
  uint32_t tensor = kNoTensor;
  const void* grad = nullptr;  // null where it has none, or where there is no such tensor
  PlanTensor planned{};
  TensorRow row{};

  // The first element of its gradient; null where there is none.
  template <class Types>
  __device__ const void* grad_of(const WorkItem& item) const {
    if (grad == nullptr) return nullptr;
    const void* first = nullptr;
    Types::with_grad(row.types, [&](auto element) {
      first = static_cast<const decltype(element)*>(grad) + size_t{item.part()} * kPartElements;
    });
    return first;
  }
};

// What the host has written down for this step. `groups` and `grads` may lie in the kernel's arguments.
struct Tables {
  const StepArgs& args;
  const GroupScalars* groups;
  const void* const* grads;

  __device__ WorkItem item_of(uint32_t draw, int index) const {
    return args.items[size_t{draw} * kItemsPerDraw + index];
  }

  __device__ TensorEntry entry_of(uint32_t tensor) const {
    if (tensor == kNoTensor) return {};
    return {tensor, grads[tensor], args.tensors[tensor], args.rows[tensor]};
  }

  template <class Rule, class Types>
  __device__ Part describe(const WorkItem& item, const TensorEntry& entry) const {
    Part part{};
    part.exists = item.tensor != kNoTensor;
    part.tensor = item.tensor;
    part.index = item.part();
    part.has_grad = entry.grad != nullptr;
    if (!part.has_grad) return part;
    const PlanTensor& tensor = entry.planned;
    const TensorRow& row = entry.row;
    const int64_t begin = static_cast<int64_t>(part.index) * kPartElements;
    const int64_t rest = tensor.n_elements - begin;
    part.n = rest < kPartElements ? static_cast<int>(rest) : kPartElements;
    part.group = tensor.group;
    part.n_chunks = tensor.n_chunks;
    part.first_node = tensor.first_node;
    const int64_t parts = (rest + kPartElements - 1) / kPartElements;
    part.n_in_run = parts < kItemsPerDraw ? static_cast<uint8_t>(parts) : kItemsPerDraw;
    part.needs_norm = tensor.needs_norm;
    part.waits = args.waits(tensor);
    part.coefficient = args.coefficient_of(item.tensor, tensor.group);
    part.step = tensor.n_chunks == 1 ? row.step : nullptr;
    part.types = row.types;
    Types::with_storage(row.types, [&](auto storage) {
      using Storage = decltype(storage);
      part.param = static_cast<typename Storage::Param*>(row.param) + begin;
      part.aligned = is_aligned(part.param);
      if constexpr (Storage::kHasMaster) {
        part.master = static_cast<typename Storage::Master*>(row.master) + begin;
        part.aligned = part.aligned && is_aligned(part.master);
      }
    });
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) {
      part.states[k] = static_cast<float*>(row.states[k]) + begin;
      part.aligned = part.aligned && is_aligned(part.states[k]);
    }
    return part;
  }

  __device__ PartScalars scalars_of(const TensorEntry& entry) const {
    return {tensor_scalars(groups[entry.planned.group], entry.row, 1.0f), *entry.row.step, entry.row.ordinal};
  }
};

}  // namespace bertadam::cuda
