#include "binding/state_values.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "binding/keys.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

// Going through a dict of three takes a quarter of the time of seven look-ups, where the keys are the interned ones,
// and most of all where they come in the order in which the optimizer creates them.
StateValues values_of(PyObject* state, RuleId rule) {
  const Keys& k = keys();
  const py::str* names[5 + kMaxStates] = {&k.step};
  size_t n_names = 1;
  for (const py::str& name : k.states_of(rule)) names[n_names++] = &name;
  const size_t first_other = n_names;
  for (const py::str* const name : {&k.master_param, &k.schedule_start, &k.param_remainder, &k.bias_correction_start})
    names[n_names++] = name;
  PyObject* found[std::size(names)] = {};
  PyObject *key, *value;
  Py_ssize_t position = 0;
  bool interned = true;
  for (size_t i = 0; interned && PyDict_Next(state, &position, &key, &value); ++i) {
    size_t slot = i;
    if (i >= n_names || key != names[i]->ptr()) {
      const auto is_key = [key](const py::str* name) { return key == name->ptr(); };
      slot = static_cast<size_t>(std::find_if(names, names + n_names, is_key) - names);
    }
    interned = slot < n_names;
    if (interned) found[slot] = value;
  }
  if (!interned) {
    for (size_t slot = 0; slot < n_names; ++slot) found[slot] = get_item(state, *names[slot]);
  }
  StateValues values;
  values.step = found[0];
  for (size_t i = 1; i < first_other; ++i) values.states[i - 1] = found[i];
  values.master_param = found[first_other];
  values.schedule_start = found[first_other + 1];
  values.param_remainder = found[first_other + 2];
  values.bias_correction_start = found[first_other + 3];
  return values;
}

}  // namespace

Found read_values(PyObject* state, RuleId rule, StateValues& values) {
  if (!PyDict_Check(state)) return Found::kOther;
  if (PyDict_GET_SIZE(state) == 0) return Found::kNothing;
  values = values_of(state, rule);
  bool tensors = values.step != nullptr && THPVariable_Check(values.step);
  for (int i = 0; i < rule_info(rule).n_states; ++i)
    tensors = tensors && values.states[i] != nullptr && THPVariable_Check(values.states[i]);
  for (PyObject* const value :
       {values.master_param, values.param_remainder, values.schedule_start, values.bias_correction_start})
    tensors = tensors && (value == nullptr || THPVariable_Check(value));
  return tensors ? Found::kTensors : Found::kOther;
}

PyObject* master_of(const StateValues& values, MasterKind kind) {
  switch (kind) {
    case MasterKind::kFloat32:
      return values.master_param;
    case MasterKind::kRemainder:
      return values.param_remainder;
    case MasterKind::kNone:
      break;
  }
  return nullptr;
}

bool has_master_of(const StateValues& values, MasterKind kind) {
  return (values.master_param != nullptr) == (kind == MasterKind::kFloat32) &&
         (values.param_remainder != nullptr) == (kind == MasterKind::kRemainder);
}

void refuse_values(PyObject* state, RuleId rule, MasterKind kind, const std::string& whose) {
  const Keys& k = keys();
  if (!PyDict_Check(state)) throw py::type_error(whose + "its state is not a dict");
  std::vector<const py::str*> names{&k.step};
  for (const py::str& name : k.states_of(rule)) names.push_back(&name);
  const size_t n_needed = names.size();
  names.insert(names.end(), {&k.master_param, &k.param_remainder, &k.schedule_start, &k.bias_correction_start});
  for (size_t i = 0; i < names.size(); ++i) {
    PyObject* const value = get_item(state, *names[i]);
    const std::string name = names[i]->cast<std::string>();
    const bool is_needed = i < n_needed;
    if (value == nullptr && is_needed) {
      throw py::value_error(whose + "its state has no '" + name +
                            "'; load a complete state, or remove optimizer.state[parameter] to start it anew");
    }
    if (value != nullptr && !THPVariable_Check(value)) {
      throw py::type_error(whose + "state '" + name + "' is a " + Py_TYPE(value)->tp_name +
                           ", expected a tensor; load it with load_state_dict");
    }
  }
  for (const auto& [key, of_key] :
       {std::pair(&k.master_param, MasterKind::kFloat32), std::pair(&k.param_remainder, MasterKind::kRemainder)}) {
    const bool is_there = get_item(state, *key) != nullptr;
    if (is_there == (kind == of_key)) continue;
    const std::string name = key->cast<std::string>();
    throw py::value_error(whose + "its state has " + (is_there ? "a '" : "no '") + name + "', and with its dtype and " +
                          "master_weights as they are now it " + (is_there ? "keeps none" : "needs one") +
                          "; call sync_master_weights() to make its master anew from the parameter");
  }
  throw std::logic_error(whose + "its state was refused without a reason");
}

}  // namespace bertadam::binding
