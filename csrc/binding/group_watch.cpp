#include "binding/group_watch.h"

#include <torch/csrc/autograd/python_variable.h>

#include <cmath>
#include <limits>

#include "binding/keys.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

// NaN for what is no learning rate, or none that can be told without Python.
double rate_of(PyObject* value) {
  double rate = std::numeric_limits<double>::quiet_NaN();
  if (PyFloat_CheckExact(value)) rate = PyFloat_AS_DOUBLE(value);
  if (PyLong_CheckExact(value)) rate = PyLong_AsDouble(value);
  if (PyErr_Occurred()) PyErr_Clear();  // an integer beyond all doubles
  return rate >= 0.0 && std::isfinite(rate) ? rate : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

void GroupWatch::accept(const py::list& groups, bool rates_may_change) {
  groups_.clear();
  items_.clear();
  params_.clear();
  dicts_.clear();
  rates_.clear();
  tensor_rates_.clear();
  device_rates_.clear();
  rates_are_new_ = false;
  for (const py::handle group : groups) {
    const auto dict = py::reinterpret_borrow<py::dict>(group);
    for (const auto& [key, value] : dict) {
      items_.push_back({py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value)});
      if (!PyDict_Check(value.ptr())) continue;
      dicts_.push_back(
          {py::reinterpret_borrow<py::dict>(value), py::reinterpret_steal<py::dict>(PyDict_Copy(value.ptr()))});
    }
    const py::list params = params_of(dict);
    for (const py::handle param : params) params_.push_back(py::reinterpret_borrow<py::object>(param));
    groups_.push_back({dict, params, dict.size(), params.size()});
    const py::object rate = dict[keys().lr];
    const at::Tensor* const tensor = THPVariable_Check(rate.ptr()) ? &THPVariable_Unpack(rate.ptr()) : nullptr;
    if (tensor != nullptr && !tensor->is_cpu()) {
      device_rates_.push_back({rate, tensor->const_data_ptr()});
      rates_.push_back(std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    if (tensor != nullptr) tensor_rates_.push_back(rates_.size());
    rates_.push_back(rate.cast<double>());
  }
  rates_may_change_ = rates_may_change;
  std::vector<py::object> dicts;
  for (const Group& seen : groups_) dicts.push_back(seen.group);
  for (const Dict& dict : dicts_) dicts.push_back(dict.value);
  watch_.watch(std::move(dicts));
}

bool GroupWatch::matches(const py::list& groups) {
  if (groups_.empty() || !same_groups(groups) || !same_params()) return false;
  if (!watch_.unwritten()) {
    if (!same_items() || !same_contents()) return false;
    watch_.accept();
  }
  return (tensor_rates_.empty() || read_tensor_rates()) && (device_rates_.empty() || device_rates_stayed());
}

// The same tensor may have been given other memory, or moved.
bool GroupWatch::device_rates_stayed() const {
  for (const DeviceRate& rate : device_rates_) {
    const at::Tensor& tensor = THPVariable_Unpack(rate.tensor.ptr());
    if (tensor.is_cpu() || tensor.numel() != 1 || tensor.const_data_ptr() != rate.memory) return false;
  }
  return true;
}

// They were found to be on the CPU, which a tensor may have left.
bool GroupWatch::read_tensor_rates() {
  for (const size_t g : tensor_rates_) {
    const at::Tensor& tensor = THPVariable_Unpack(get_item(groups_[g].group, keys().lr));
    if (!tensor.is_cpu() || tensor.numel() != 1) return false;
    const double rate = tensor.item<double>();
    if (rate != rates_[g] && !accept_rate(g, rate)) return false;
  }
  return true;
}

bool GroupWatch::same_groups(const py::list& groups) const {
  if (groups.size() != groups_.size()) return false;
  PyObject* const* const now = PySequence_Fast_ITEMS(groups.ptr());
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (now[g] != groups_[g].group.ptr()) return false;
  }
  return true;
}

bool GroupWatch::same_items() {
  Item* item = items_.data();
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = groups_[g];
    if (group.group.size() != group.n_items) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (; PyDict_Next(group.group.ptr(), &position, &key, &value); ++item) {
      if (key != item->key.ptr()) return false;
      if (value == item->value.ptr()) continue;
      if (key != keys().lr.ptr() || !accept_rate(g, *item, value)) return false;
    }
  }
  return true;
}

// A number that takes the place of a tensor is looked at anew: `tensor_rates_` has its group.
bool GroupWatch::accept_rate(size_t index, Item& item, PyObject* value) {
  if (THPVariable_Check(item.value.ptr()) || !accept_rate(index, rate_of(value))) return false;
  item.value = py::reinterpret_borrow<py::object>(value);
  return true;
}

bool GroupWatch::accept_rate(size_t index, double rate) {
  if (!rates_may_change_ || !(rate >= 0.0) || !std::isfinite(rate)) return false;
  rates_[index] = rate;
  rates_are_new_ = true;
  return true;
}

bool GroupWatch::same_params() const {
  const py::object* expected = params_.data();
  for (const Group& group : groups_) {
    if (group.params.size() != group.n_params) return false;
    PyObject* const* const params = PySequence_Fast_ITEMS(group.params.ptr());
    for (size_t i = 0; i < group.n_params; ++i) {
      if (params[i] != expected++->ptr()) return false;
    }
  }
  return true;
}

bool GroupWatch::same_contents() const {
  for (const auto& [dict, content] : dicts_) {
    if (dict.size() != content.size()) return false;
    PyObject *key, *value, *old_key, *old_value;
    Py_ssize_t position = 0, old_position = 0;
    while (PyDict_Next(dict.ptr(), &position, &key, &value)) {
      if (!PyDict_Next(content.ptr(), &old_position, &old_key, &old_value) || key != old_key || value != old_value)
        return false;
    }
  }
  return true;
}

const std::vector<double>* GroupWatch::new_rates() {
  const bool are_new = rates_are_new_;
  rates_are_new_ = false;
  return are_new ? &rates_ : nullptr;
}

void GroupWatch::traverse(Visit& visit) const {
  watch_.traverse(visit);
  for (const Item& item : items_) {
    visit(item.key);
    visit(item.value);
  }
  for (const Group& group : groups_) {
    visit(group.group);
    visit(group.params);
  }
  for (const py::object& param : params_) visit(param);
  for (const DeviceRate& rate : device_rates_) visit(rate.tensor);
  for (const Dict& dict : dicts_) {
    visit(dict.value);
    visit(dict.content);
  }
}

}  // namespace bertadam::binding
