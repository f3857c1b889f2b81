#include "binding/keys.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

py::str interned(const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); }

Keys* make_keys() {
  Keys* const made = new Keys{interned("params"),       interned("param_names"),     interned("lr"),
                              interned("step"),         interned("schedule_start"),  interned("bias_correction_start"),
                              interned("master_param"), interned("param_remainder"), {}};
  for (int rule = 0; rule < kNumRules; ++rule) {
    for (int k = 0; k < kRules[rule].n_states; ++k) made->states[rule].push_back(interned(kRules[rule].state_names[k]));
  }
  return made;
}

}  // namespace

// Never destroyed: the interpreter may be gone by then.
const Keys& keys() {
  static const Keys* const instance = make_keys();
  return *instance;
}

PyObject* get_item(py::handle dict, const py::str& key) {
  PyObject* const value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

py::list params_of(py::handle group) {
  PyObject* const params = PyDict_Check(group.ptr()) ? get_item(group, keys().params) : nullptr;
  if (params == nullptr || !PyList_Check(params)) throw py::type_error("a parameter group has no list 'params'");
  return py::reinterpret_borrow<py::list>(params);
}

std::string param_name(py::handle group, size_t group_index, size_t index) {
  std::string name = "param_groups[" + std::to_string(group_index) + "]['params'][" + std::to_string(index) + "]";
  PyObject* const names = get_item(group, keys().param_names);
  if (names != nullptr && PyList_Check(names) && index < static_cast<size_t>(PyList_GET_SIZE(names))) {
    name = "'" + py::str(py::handle(PyList_GET_ITEM(names, static_cast<Py_ssize_t>(index)))).cast<std::string>() +
           "' (" + name + ")";
  }
  return name;
}

}  // namespace bertadam::binding
