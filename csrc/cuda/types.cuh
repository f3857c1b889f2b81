// What a kernel knows of its tensors' types: all of it when it is compiled, or nothing before it reads a row.
#pragma once

#include "core/types.h"
#include "cuda/tuning.h"

namespace bertadam::cuda {

// Each calls f with a value of the type, for a row's code.
template <class Row>
struct OneRow {
  static constexpr uint32_t kMostGradBytes = sizeof(typename Row::Grad);
  static constexpr int kBytesAhead = kNormBytesAhead;
  template <class Table>
  using Kept = const Table;  // in registers, through a step

  template <class F>
  __device__ __forceinline__ static void with_storage(uint32_t, F f) {
    f(typename Row::Storage{});
  }
  template <class F>
  __device__ __forceinline__ static void with_grad(uint32_t, F f) {
    f(typename Row::Grad{});
  }
};

// Of an optimizer with tensors of several types. All branches are uniform: a warp works on one tensor at a time.
struct AnyRow {
  static constexpr uint32_t kMostGradBytes = sizeof(float);
  static constexpr int kBytesAhead = kNormBytesAhead / 2;  // with all, AMSGrad spills on sm_90, Adam on sm_100
  template <class Table>
  using Kept = const Table&;  // there are no registers left: a copy spills on sm_80

  template <class F>
  __device__ __forceinline__ static void with_storage(uint32_t code, F f) {
    switch (storage_kind(code)) {
#define BERTADAM_CASE(kind, Storage) \
  case StorageKind::kind:            \
    f(Storage{});                    \
    break;
      BERTADAM_FOR_EACH_STORAGE(BERTADAM_CASE)
#undef BERTADAM_CASE
    }
  }
  template <class F>
  __device__ __forceinline__ static void with_grad(uint32_t code, F f) {
    switch (grad_type(code)) {
#define BERTADAM_CASE(type, Grad, name) \
  case DType::type:                     \
    f(Grad{});                          \
    break;
      BERTADAM_FOR_EACH_GRAD(BERTADAM_CASE)
#undef BERTADAM_CASE
    }
  }
};

// In rooms that hold a float for each gradient.
template <class Types>
struct Wide : Types {
  static constexpr uint32_t kMostGradBytes = sizeof(float);
};

}  // namespace bertadam::cuda
