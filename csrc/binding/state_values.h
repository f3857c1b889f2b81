// What a parameter's state dict holds.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "binding/param_storage.h"
#include "core/step_args.h"

namespace bertadam::binding {

// Borrowed; null where there is no such key.
struct StateValues {
  PyObject* step = nullptr;
  PyObject* states[kMaxStates] = {};  // as many as the rule has
  PyObject* master_param = nullptr;
  PyObject* param_remainder = nullptr;
  PyObject* schedule_start = nullptr;
  PyObject* bias_correction_start = nullptr;
};

enum class Found { kNothing, kTensors, kOther };

// Reads `values` unless there is nothing. kTensors: all that a step of `rule` needs is there, and each a tensor.
Found read_values(PyObject* state, RuleId rule, StateValues& values);

// The value of a master's key; null for kNone.
PyObject* master_of(const StateValues& values, MasterKind kind);

// Whether the state has the master that `kind` says and no other.
bool has_master_of(const StateValues& values, MasterKind kind);

// Says what is wrong with a state that is not of kTensors, or has not the master of `kind`; `whose` begins the message.
[[noreturn]] void refuse_values(PyObject* state, RuleId rule, MasterKind kind, const std::string& whose);

}  // namespace bertadam::binding
