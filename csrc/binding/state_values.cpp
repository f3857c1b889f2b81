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
StateValues values_of(PyObject* state) {
  const Keys& k = keys();
  const py::str* const names[] = {&k.step,
                                  &k.states[0],
                                  &k.states[1],
                                  &k.master_param,
                                  &k.schedule_start,
                                  &k.param_remainder,
                                  &k.bias_correction_start};
  PyObject* found[std::size(names)] = {};
  PyObject *key, *value;
  Py_ssize_t position = 0;
  bool interned = true;
  for (size_t i = 0; interned && PyDict_Next(state, &position, &key, &value); ++i) {
    size_t slot = i;
    if (i >= std::size(names) || key != names[i]->ptr()) {
      const auto is_key = [key](const py::str* name) { return key == name->ptr(); };
      slot = static_cast<size_t>(std::find_if(std::begin(names), std::end(names), is_key) - std::begin(names));
    }
    interned = slot < std::size(names);
    if (interned) found[slot] = value;
  }
  if (!interned) {
    for (size_t slot = 0; slot < std::size(names); ++slot) found[slot] = get_item(state, *names[slot]);
  }
  StateValues values;
  values.step = found[0];
  for (int i = 0; i < kMaxStates; ++i) values.states[i] = found[1 + i];
  values.master_param = found[3];
  values.schedule_start = found[4];
  values.param_remainder = found[5];
  values.bias_correction_start = found[6];
  return values;
}

}  // namespace

Found read_values(PyObject* state, StateValues& values) {
  if (!PyDict_Check(state)) return Found::kOther;
  if (PyDict_GET_SIZE(state) == 0) return Found::kNothing;
  values = values_of(state);
  bool tensors = values.step != nullptr && THPVariable_Check(values.step);
  for (PyObject* const value : values.states) tensors = tensors && value != nullptr && THPVariable_Check(value);
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

void refuse_values(PyObject* state, MasterKind kind, const std::string& whose) {
  const Keys& k = keys();
  if (!PyDict_Check(state)) throw py::type_error(whose + "its state is not a dict");
  for (const py::str* const key : {&k.step, &k.states[0], &k.states[1], &k.master_param, &k.param_remainder,
                                   &k.schedule_start, &k.bias_correction_start}) {
    PyObject* const value = get_item(state, *key);
    const std::string name = key->cast<std::string>();
    const bool is_needed = key == &k.step || key == &k.states[0] || key == &k.states[1];
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
