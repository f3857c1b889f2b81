// The dict keys that the binding looks for. Interned, so that a key that Python code wrote as a literal is the same
// object and need not be hashed or compared by its characters.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>
#include <vector>

#include "core/rules.h"

namespace bertadam::binding {

struct Keys {
  pybind11::str params, param_names, lr, step, schedule_start, bias_correction_start, master_param, param_remainder;
  std::vector<pybind11::str> states[kNumRules];

  const std::vector<pybind11::str>& states_of(RuleId rule) const { return states[static_cast<int>(rule)]; }
};

const Keys& keys();

// Null where there is no such key.
PyObject* get_item(pybind11::handle dict, const pybind11::str& key);

pybind11::list params_of(pybind11::handle group);

// What errors call a parameter: by its place, and by its name where the group has names.
std::string param_name(pybind11::handle group, size_t group_index, size_t index);

}  // namespace bertadam::binding
