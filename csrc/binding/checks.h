// What the binding refuses, and the words it does so in: where, which tensor, what was found, what was expected,
// what to do. Nothing here writes.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "binding/param_storage.h"
#include "core/rules.h"

namespace bertadam::binding {

// Memory that a step writes, and whose it is.
struct Interval {
  const char* begin;
  const char* end;
  uint32_t owner;  // index of the parameter
  const char* role;
};

// `where`: the optimizer's name; `name`: the parameter's. Returns how it is stored.
ParamStorage check_param(const at::Tensor& param, const StorageSettings& settings, const std::string& where,
                         const std::string& name);

// Returns its type.
DType check_grad(const at::Tensor& grad, const at::Tensor& param, const std::string& where, const std::string& name);

// A value of the state dict, under `key`. It must lie in memory as the parameter does.
struct StateOf {
  const at::Tensor& param;
  const char* key;
  caffe2::TypeMeta dtype;  // that it must have
};
void check_state(const at::Tensor& state, const StateOf& of, const std::string& where, const std::string& name);

// A counter of the state: 0-dim float32 on the parameter's device.
void check_counter(const at::Tensor& counter, const at::Tensor& param, const char* key, const std::string& where,
                   const std::string& name);

// What a scaler hands over: one float32, in memory that is there.
void check_scaler_value(const at::Tensor& value, const char* name, const std::string& where);

// No two intervals may overlap; sorts them.
void check_disjoint(std::vector<Interval>& intervals, const std::string& where, const std::vector<std::string>& names);

// Whether `grad`'s memory can be read with the parameter's offsets: equal strides, dimensions of size 1 aside, and no
// lazy negation.
bool same_layout(const at::Tensor& grad, const at::Tensor& param);

}  // namespace bertadam::binding
