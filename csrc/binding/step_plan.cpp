#include "binding/step_plan.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/python_variable.h>

#include "core/rules/adam.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

py::str interned(const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); }

struct Keys {
  py::str params = interned("params");
  py::str param_names = interned("param_names");
  py::str step = interned("step");
  py::str schedule_start = interned("schedule_start");
  py::str bias_correction_start = interned("bias_correction_start");
  py::str states[Adam::kNumStates] = {interned(Adam::kStateNames[0]), interned(Adam::kStateNames[1])};
};

// Never destroyed: the interpreter may be gone by then.
const Keys& keys() {
  static const Keys* const instance = new Keys;
  return *instance;
}

PyObject* get_item(const py::dict& dict, const py::str& key) {
  PyObject* const value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

py::list params_of(const py::handle& group) {
  PyObject* const params = get_item(py::reinterpret_borrow<py::dict>(group), keys().params);
  if (params == nullptr || !PyList_Check(params)) throw py::type_error("a parameter group has no list 'params'");
  return py::reinterpret_borrow<py::list>(params);
}

std::string param_name(const py::handle& group, size_t group_index, size_t index) {
  std::string name = "param_groups[" + std::to_string(group_index) + "]['params'][" + std::to_string(index) + "]";
  PyObject* const names = get_item(py::reinterpret_borrow<py::dict>(group), keys().param_names);
  if (names != nullptr && PyList_Check(names) && index < static_cast<size_t>(PyList_GET_SIZE(names))) {
    name = "'" + py::str(py::handle(PyList_GET_ITEM(names, static_cast<Py_ssize_t>(index)))).cast<std::string>() +
           "' (" + name + ")";
  }
  return name;
}

}  // namespace

StepPlan::StepPlan(std::string where, py::list param_groups, py::dict state, at::Device device, at::Tensor n_skipped)
    : where_(std::move(where)), device_(device), state_(std::move(state)), n_groups_(param_groups.size()) {
  std::vector<Interval> memory;
  for (size_t g = 0; g < n_groups_; ++g) {
    const py::list params = params_of(param_groups[g]);
    group_sizes_.push_back(static_cast<Py_ssize_t>(params.size()));
    for (size_t i = 0; i < params.size(); ++i) {
      const py::object object = params[i];
      all_params_.push_back(object);
      if (!THPVariable_Check(object.ptr()))
        throw py::type_error(where_ + ": " + param_name(param_groups[g], g, i) + " is not a tensor");
      const at::Tensor param = THPVariable_Unpack(object.ptr());
      if (param.device() != device_) continue;
      names_.push_back(param_name(param_groups[g], g, i));
      check_param(param, where_, names_.back());
      const auto* const begin = static_cast<const char*>(param.const_data_ptr());
      if (param.numel() > 0)
        memory.push_back({begin, begin + param.nbytes(), static_cast<uint32_t>(entries_.size()), "the memory"});
      Entry entry;
      entry.object = object;
      entry.param = param;
      entry.sizes = param.sizes().vec();
      entry.strides = param.strides().vec();
      entry.group = static_cast<uint32_t>(g);
      entries_.push_back(std::move(entry));
    }
  }
  check_disjoint(memory, where_, names_);
  std::vector<int64_t> n_elements;
  std::vector<uint32_t> group;
  for (const Entry& entry : entries_) {
    n_elements.push_back(entry.param.numel());
    group.push_back(entry.group);
  }
  execution = std::make_unique<Execution>(where_, device_, n_elements, group, n_groups_, std::move(n_skipped));
  group_tables_.resize(2 * n_groups_);
}

void StepPlan::set_group(size_t index, const GroupSettings& s, at::Tensor multipliers,
                         std::optional<at::Tensor> corrections) {
  TORCH_CHECK(index < n_groups_, "group index out of range");
  for (const at::Tensor* table : {&multipliers, corrections ? &*corrections : &multipliers}) {
    TORCH_CHECK(table->device() == device_ && table->scalar_type() == at::kDouble && table->is_contiguous() &&
                    table->numel() > 0,
                "schedule tables are contiguous float64 tensors on the plan's device");
  }
  GroupScalars& group = execution->groups()[index];
  group = GroupScalars{};
  group.lr = s.lr;
  group.max_grad_norm = s.max_grad_norm;
  group.beta1 = split(s.beta1);
  group.one_minus_beta1 = split(1.0 - s.beta1);
  group.beta2 = split(s.beta2);
  group.one_minus_beta2 = split(1.0 - s.beta2);
  group.eps = static_cast<float>(s.eps);
  group.weight_decay = static_cast<float>(s.weight_decay);
  group.grad_sign = s.maximize ? -1.0f : 1.0f;
  group.multipliers = multipliers.const_data_ptr<double>();
  group.n_multipliers = multipliers.numel();
  if (corrections) {
    group.corrections = static_cast<const BiasCorrection*>(corrections->const_data_ptr());
    group.n_corrections = corrections->numel() / 2;
  }
  group_tables_[2 * index] = std::move(multipliers);
  group_tables_[2 * index + 1] = corrections ? *corrections : at::Tensor();
}

void StepPlan::set_lr(size_t index, double lr) {
  TORCH_CHECK(index < n_groups_, "group index out of range");
  execution->groups()[index].lr = lr;
}

bool StepPlan::same_structure(const py::list& param_groups) const {
  if (param_groups.size() != n_groups_) return false;
  size_t flat = 0;
  for (size_t g = 0; g < n_groups_; ++g) {
    PyObject* const params = params_of(PyList_GET_ITEM(param_groups.ptr(), static_cast<Py_ssize_t>(g))).ptr();
    const Py_ssize_t n = PyList_GET_SIZE(params);
    if (n != group_sizes_[g]) return false;
    for (Py_ssize_t i = 0; i < n; ++i) {
      if (PyList_GET_ITEM(params, i) != all_params_[flat++].ptr()) return false;
    }
  }
  return true;
}

bool StepPlan::inspect(const py::list& param_groups, const py::dict& state) {
  if (!state.is(state_) || !same_structure(param_groups)) return false;
  converted_grads_.clear();
  converted_grads_.reserve(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    const at::Tensor& param = entry.param;
    if (!entry.seen_param.matches(param, entry.sizes, entry.strides)) {
      if (param.device() != device_ || param.sizes() != entry.sizes || param.strides() != entry.strides) return false;
      check_param(param, where_, names_[i]);
      entry.seen_param.remember(param);
    }
    entry.grad = nullptr;
    const at::Tensor& grad = param.unsafeGetTensorImpl()->grad();
    if (!grad.defined()) continue;
    check_grad(grad, param, where_, names_[i]);
    entry.grad = &grad;
    if (same_layout(grad, param)) continue;
    const at::NoGradGuard no_grad;  // a gradient may have a graph of its own
    converted_grads_.push_back(at::empty_strided(param.sizes(), param.strides(), param.options()).copy_(grad));
    entry.grad = &converted_grads_.back();
  }
  return true;
}

void StepPlan::find_state(Entry& entry, const std::string& name) {
  PyObject* const found = PyDict_GetItemWithError(state_.ptr(), entry.object.ptr());
  if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
  if (found != nullptr && !PyDict_Check(found))
    throw py::type_error(where_ + ": the state of " + name + " is not a dict");
  const bool exists = found != nullptr && PyDict_GET_SIZE(found) > 0;
  entry.state = exists ? py::reinterpret_borrow<py::dict>(found) : py::dict();
}

StepPlan::StateValues StepPlan::values_of(const py::dict& state) {
  const Keys& k = keys();
  const std::pair<const py::str*, size_t> all[] = {
      {&k.step, 0}, {&k.states[0], 1}, {&k.states[1], 2}, {&k.schedule_start, 3}, {&k.bias_correction_start, 4}};
  PyObject* found[5] = {};
  // Going through a dict of three takes a quarter of the time of five look-ups, where the keys are the interned ones.
  PyObject *key, *value;
  Py_ssize_t position = 0;
  bool interned = true;
  while (PyDict_Next(state.ptr(), &position, &key, &value)) {
    bool known = false;
    for (const auto& [name, slot] : all) {
      if (key != name->ptr()) continue;
      found[slot] = value;
      known = true;
      break;
    }
    interned = interned && known;
  }
  if (!interned) {
    for (const auto& [name, slot] : all) found[slot] = get_item(state, *name);
  }
  return {{found[1], found[2]}, found[0], found[3], found[4]};
}

const at::Tensor& StepPlan::as_tensor(PyObject* value, const char* key, size_t index) const {
  if (value == nullptr) {
    throw py::value_error(where_ + ": " + names_[index] + ": its state has no '" + key +
                          "'; load a complete state, or remove optimizer.state[parameter] to start it anew");
  }
  if (!THPVariable_Check(value)) {
    throw py::type_error(where_ + ": " + names_[index] + ": state '" + key + "' is a " + Py_TYPE(value)->tp_name +
                         ", expected a tensor; load it with load_state_dict");
  }
  return THPVariable_Unpack(value);
}

void StepPlan::read_state(Entry& entry, size_t index, TensorRow& row) {
  const StateValues values = values_of(entry.state);
  for (int k = 0; k < Adam::kNumStates; ++k) {
    const at::Tensor& state = as_tensor(values.states[k], Adam::kStateNames[k], index);
    if (!entry.seen_states[k].matches(state, entry.sizes, entry.strides)) {
      check_state(state, entry.param, Adam::kStateNames[k], where_, names_[index]);
      entry.seen_states[k].remember(state);
    }
    row.states[k] = state.mutable_data_ptr();
    will_write(state);
  }
  const at::Tensor& step = as_tensor(values.step, "step", index);
  const bool had_step = entry.seen_step.impl() != nullptr;
  if (!entry.seen_step.matches(step, {}, {})) {
    check_counter(step, entry.param, "step", where_, names_[index]);
    if (had_step) counters_changed_ = true;
    entry.seen_step.remember(step);
  } else if (step._version() != entry.step_version) {
    counters_changed_ = true;
  }
  row.step = static_cast<float*>(step.mutable_data_ptr());
  will_write(step);
  const auto start = [&](PyObject* value, const char* key) -> const float* {
    if (value == nullptr) return nullptr;
    const at::Tensor& counter = as_tensor(value, key, index);
    check_counter(counter, entry.param, key, where_, names_[index]);
    return counter.const_data_ptr<float>();
  };
  row.schedule_start = start(values.schedule_start, "schedule_start");
  row.bias_correction_start = start(values.bias_correction_start, "bias_correction_start");
}

// Counting references costs 50 ns a tensor, which passes through Python; a launch is over before anybody else runs.
void StepPlan::will_write(const at::Tensor& tensor) {
  written_.push_back(tensor.unsafeGetTensorImpl());
  if (device_.is_cpu()) alive_.push_back(tensor);
}

bool StepPlan::prepare(const py::function& init_state) {
  counters_changed_ = false;
  written_.clear();
  alive_.clear();
  const bool state_changed = PyDict_Size(state_.ptr()) != n_states_;
  std::vector<size_t> missing;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    // A dict that only this plan still refers to has been replaced in optimizer.state.
    if (state_changed || Py_REFCNT(entry.state.ptr()) == 1) find_state(entry, names_[i]);
    TensorRow& row = execution->rows()[i];
    row = TensorRow{};
    if (!entry.state.empty()) {
      if (entry.grad != nullptr) read_state(entry, i, row);
    } else if (entry.grad != nullptr || entry.param.requires_grad()) {
      missing.push_back(i);
    }
    execution->grads()[i] = nullptr;
    if (entry.grad == nullptr) continue;
    row.param = entry.param.mutable_data_ptr();
    will_write(entry.param);
    // An empty gradient has no address, and a null one would mean that there is none.
    execution->grads()[i] = entry.param.numel() > 0 ? entry.grad->const_data_ptr() : static_cast<const void*>(&row);
  }
  // Only now, when all that exists has been found in order.
  for (const size_t i : missing) {
    init_state(entries_[i].object);
    find_state(entries_[i], names_[i]);
    if (entries_[i].grad != nullptr) read_state(entries_[i], i, execution->rows()[i]);
  }
  n_states_ = PyDict_Size(state_.ptr());
  check_overlaps();
  execution->prepare();
  return counters_changed_;
}

void StepPlan::check_overlaps() {
  std::vector<const void*> pointers;
  pointers.reserve(entries_.size() * (2 + Adam::kNumStates));
  for (size_t i = 0; i < entries_.size(); ++i) {
    const TensorRow& row = execution->rows()[i];
    pointers.push_back(row.param);
    pointers.insert(pointers.end(), row.states, row.states + Adam::kNumStates);
    pointers.push_back(row.step);
  }
  if (pointers == written_pointers_) return;
  std::vector<Interval> memory;
  const auto add = [&memory](const void* pointer, int64_t bytes, size_t owner, const char* role) {
    const auto* const begin = static_cast<const char*>(pointer);
    if (bytes > 0) memory.push_back({begin, begin + bytes, static_cast<uint32_t>(owner), role});
  };
  for (size_t i = 0; i < entries_.size(); ++i) {
    const TensorRow& row = execution->rows()[i];
    if (entries_[i].grad == nullptr) continue;
    const auto bytes = static_cast<int64_t>(entries_[i].param.nbytes());
    add(row.param, bytes, i, "the memory");
    for (int k = 0; k < Adam::kNumStates; ++k) add(row.states[k], bytes, i, Adam::kStateNames[k]);
    add(row.step, sizeof(float), i, "step");
  }
  check_disjoint(memory, where_, names_);
  written_pointers_ = std::move(pointers);
}

void StepPlan::run() {
  if (device_.is_cpu()) {
    const py::gil_scoped_release released;
    execution->run();
  } else {
    execution->run();
  }
  for (c10::TensorImpl* const tensor : written_) tensor->bump_version();
  alive_.clear();
  for (Entry& entry : entries_) {
    if (entry.grad != nullptr) entry.step_version = entry.seen_step.impl()->version_counter().current_version();
  }
}

}  // namespace bertadam::binding
