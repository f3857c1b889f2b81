// Which kernels a step takes, how much shared memory they have, and their launch.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cuda/engine.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/runtime.cuh"

namespace bertadam::cuda {

inline Instance adam(uint32_t types) {
  switch (types) {
    case types_code(StorageKind::kFloat32, DType::kFloat32):
      return adam_float32();
    case types_code(StorageKind::kBFloat16, DType::kBFloat16):
      return adam_bfloat16();
    case types_code(StorageKind::kBFloat16Master, DType::kBFloat16):
      return adam_bfloat16_master();
    case types_code(StorageKind::kBFloat16Remainder, DType::kBFloat16):
      return adam_bfloat16_remainder();
    case types_code(StorageKind::kFloat16, DType::kFloat16):
      return adam_float16();
    case types_code(StorageKind::kFloat16Master, DType::kFloat16):
      return adam_float16_master();
    default:
      return adam_any();
  }
}

inline Instance lamb(uint32_t types) {
  switch (types) {
    case types_code(StorageKind::kFloat32, DType::kFloat32):
      return lamb_float32();
    case types_code(StorageKind::kBFloat16Master, DType::kBFloat16):
      return lamb_bfloat16_master();
    case types_code(StorageKind::kFloat16Master, DType::kFloat16):
      return lamb_float16_master();
    default:
      return lamb_any();
  }
}

inline Instance lars(uint32_t types) {
  return types == types_code(StorageKind::kFloat32, DType::kFloat32) ? lars_float32() : lars_any();
}

inline Instance instance_of(RuleId rule, uint32_t types) {
  switch (rule) {
    case RuleId::kAdam:
      return adam(types);
    case RuleId::kAmsgrad:
      return amsgrad_any();
    case RuleId::kLamb:
      return lamb(types);
    case RuleId::kLars:
      break;
  }
  return lars(types);
}

// The kernel of a rule and types, and what decides its ring.
struct KernelChoice {
  const void* kernel;
  uint32_t grad_bytes;
  bool surveys;

  uint32_t n_passing() const { return surveys ? kSlotsInSurvey : kSlotsInPassage; }  // slots that no draw keeps
};

template <class Args>
KernelChoice kernel_with(RuleId rule, uint32_t types) {
  const Instance instance = instance_of(rule, types);
  const void* kernel = nullptr;
  if constexpr (std::is_same_v<Args, SmallArgs>) {
    kernel = reinterpret_cast<const void*>(instance.small);
  } else {
    kernel = reinterpret_cast<const void*>(instance.large);
  }
  return {kernel, instance.grad_bytes, rule_info(rule).has_trust_ratio};
}

// Allows the kernel as much shared memory as the ring takes. Where it fails, `shape` stays as it was.
inline int find_ring_shape(int device, const KernelChoice& choice, RingShape* shape) {
  int multiprocessors = 0;
  int shared_bytes = 0;
  BERTADAM_RETURN_IF_ERROR(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  BERTADAM_RETURN_IF_ERROR(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  cudaFuncAttributes attributes;
  BERTADAM_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, choice.kernel));
  const size_t available = static_cast<size_t>(shared_bytes) - attributes.sharedSizeBytes;
  const size_t slot_bytes = RingMemory::slot_bytes(choice.grad_bytes);
  const auto n_slots = std::min(kMostSlots, static_cast<uint32_t>(available / slot_bytes));
  if (n_slots < kNormWarps) return static_cast<int>(cudaErrorInvalidConfiguration);  // each has one
  BERTADAM_RETURN_IF_ERROR(cudaFuncSetAttribute(choice.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(n_slots * slot_bytes)));
  *shape = {multiprocessors, n_slots, n_slots > choice.n_passing() ? n_slots - choice.n_passing() : 1};
  return 0;
}

// Groups first, then gradients.
struct StepTable {
  explicit StepTable(const StepTables& tables)
      : tables(tables),
        groups_size(tables.groups.size() * sizeof(GroupScalars)),
        size(groups_size + tables.grads.size() * sizeof(void*)) {}

  void write(unsigned char* to) const {
    std::memcpy(to, tables.groups.data(), groups_size);
    std::memcpy(to + groups_size, tables.grads.data(), size - groups_size);
  }
  void point(StepArgs& args, const unsigned char* on_device) const {
    args.groups = reinterpret_cast<const GroupScalars*>(on_device);
    args.grads = reinterpret_cast<const void* const*>(on_device + groups_size);
  }

  const StepTables& tables;
  const size_t groups_size, size;
};

// Groups and gradients travel in the arguments unless `step` says where they are on the device.
template <class Args>
int launch_step(const KernelChoice& choice, const RingShape& shape, const StepArgs& step, const StepTable& table,
                uint32_t n_blocks, cudaStream_t stream) {
  Args args;
  args.step = step;
  const bool keeps = choice.surveys || (step.has_norms && !step.wait_for_all);
  args.n_slots = keeps ? shape.n_slots : std::min(shape.n_slots, kSlotsWithoutNorms);
  if (step.groups == nullptr) table.write(args.table);
  void* parameters[] = {&args};
  const size_t shared_bytes = args.n_slots * RingMemory::slot_bytes(choice.grad_bytes);
  BERTADAM_RETURN_IF_ERROR(
      cudaLaunchKernel(choice.kernel, dim3(n_blocks), dim3(kThreads), parameters, shared_bytes, stream));
  return 0;
}

inline uint32_t blocks_of(const RingShape& shape, const StepArgs& args) {
  return std::min(static_cast<uint32_t>(shape.blocks), args.n_draws);
}

}  // namespace bertadam::cuda
