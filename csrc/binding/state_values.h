// What a parameter's state dict holds.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "core/step_args.h"

namespace bertadam::binding {

// Borrowed; null where there is no such key.
struct StateValues {
  PyObject* step = nullptr;
  PyObject* states[kMaxStates] = {};
  PyObject* schedule_start = nullptr;
  PyObject* bias_correction_start = nullptr;
};

enum class Found { kNothing, kTensors, kOther };

// Reads `values` unless there is nothing. kTensors: all that a step needs is there, and each a tensor.
Found read_values(PyObject* state, StateValues& values);

// Says what is wrong where kOther was found; `whose` begins the message.
[[noreturn]] void refuse_values(PyObject* state, const std::string& whose);

}  // namespace bertadam::binding
