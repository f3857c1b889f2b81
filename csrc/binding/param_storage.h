// How a parameter is stored: what its dtype and the optimizer's settings make of it, or why they do not go together.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "binding/ordinary.h"
#include "core/types.h"

namespace bertadam::binding {

// What a state dict holds beside the states of the rule.
enum class MasterKind { kNone, kFloat32, kRemainder };

// Of the optimizer; named as its arguments are.
struct StorageSettings {
  MasterKind master_weights = MasterKind::kNone;
  bool stochastic_rounding = false;
  uint64_t rounding_seed = 0;
};

struct ParamStorage {
  StorageKind kind;
  ElementType param;
  MasterKind master_kind;
  ElementType master;  // meaningless where there is none
};

// `whose`: begins the error. No storage: the dtype is not supported.
std::optional<ParamStorage> storage_of(at::ScalarType dtype, const StorageSettings& settings, const std::string& whose);

// What core calls the dtype of a gradient.
std::optional<DType> grad_type_of(at::ScalarType dtype);

// From the argument of the optimizer.
MasterKind master_kind_of(const std::optional<std::string>& master_weights);

}  // namespace bertadam::binding
