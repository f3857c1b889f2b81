// The one list of what a step can update: parameters by their storage, each with gradients of any of three types, and
// states of float. It drives the instances, the dispatch, the error texts and the tests: to support a row, add it here.
#pragma once

#include <cstdint>

#include "core/dtypes.h"
#include "core/storage.h"

namespace bertadam {

// The storages of the list below.
enum class StorageKind : uint32_t {
  kFloat32,
  kBFloat16,
  kFloat16,
  kBFloat16Master,
  kFloat16Master,
  kBFloat16Remainder,
  kBFloat16Stochastic
};

// What a tensor's row carries: storage and gradient type in one number. Zero is float and float.
constexpr uint32_t kGradTypes = 3;
constexpr uint32_t types_code(StorageKind storage, DType grad) {
  return static_cast<uint32_t>(storage) * kGradTypes + static_cast<uint32_t>(grad);
}
BERTADAM_HD StorageKind storage_kind(uint32_t code) { return static_cast<StorageKind>(code / kGradTypes); }
BERTADAM_HD DType grad_type(uint32_t code) { return static_cast<DType>(code % kGradTypes); }

template <class StorageT, class GradT>
struct TypeRow {
  using Storage = StorageT;
  using Param = typename StorageT::Param;
  using Grad = GradT;
  using State = float;
};

using Float32Row = TypeRow<Plain<float>, float>;

// X(enumerator of DType, type, dtype by torch's name).
#define BERTADAM_FOR_EACH_GRAD(X)    \
  X(kFloat32, float, "float32")      \
  X(kBFloat16, BFloat16, "bfloat16") \
  X(kFloat16, Float16, "float16")

// Apply(X, enumerator of StorageKind, storage): the list itself.
#define BERTADAM_FOR_EACH_STORAGE_APPLY(Apply, X)                                                          \
  Apply(X, kFloat32, Plain<float>) Apply(X, kBFloat16, Plain<BFloat16>) Apply(X, kFloat16, Plain<Float16>) \
      Apply(X, kBFloat16Master, WithMaster<BFloat16>) Apply(X, kFloat16Master, WithMaster<Float16>)        \
          Apply(X, kBFloat16Remainder, WithRemainder) Apply(X, kBFloat16Stochastic, Stochastic)

// X(enumerator of StorageKind, storage).
#define BERTADAM_ALONE(X, kind, storage) X(kind, storage)
#define BERTADAM_FOR_EACH_STORAGE(X) BERTADAM_FOR_EACH_STORAGE_APPLY(BERTADAM_ALONE, X)

// X(enumerator of StorageKind, storage, enumerator of the gradient's DType, its type).
#define BERTADAM_WITH_EACH_GRAD(X, kind, storage) \
  X(kind, storage, kFloat32, float)               \
  X(kind, storage, kBFloat16, BFloat16)           \
  X(kind, storage, kFloat16, Float16)
#define BERTADAM_FOR_EACH_TYPE_ROW(X) BERTADAM_FOR_EACH_STORAGE_APPLY(BERTADAM_WITH_EACH_GRAD, X)

}  // namespace bertadam
