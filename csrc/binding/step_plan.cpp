#include "binding/step_plan.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <unordered_map>

#include "binding/keys.h"
#include "binding/versions.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

// TensorImpl::grad is two calls, one of them virtual.
const at::Tensor* grad_of(const c10::TensorImpl& tensor) {
  const auto* const meta = static_cast<torch::autograd::AutogradMeta*>(tensor.autograd_meta());
  return meta != nullptr && meta->grad_.defined() ? &meta->grad_ : nullptr;
}

}  // namespace

StepPlan::StepPlan(std::string where, RuleId rule, py::list param_groups, py::dict state, at::Device device,
                   at::Tensor n_skipped, StorageSettings storage)
    : where_(std::move(where)),
      rule_(rule),
      n_states_(rule_info(rule).n_states),
      device_(device),
      storage_(storage),
      ordinary_(device),
      state_(std::move(state)),
      n_groups_(param_groups.size()) {
  std::vector<Interval> memory;
  std::vector<int64_t> n_elements;
  std::vector<uint32_t> group;
  for (size_t g = 0; g < n_groups_; ++g) {
    const py::list params = params_of(param_groups[g]);
    group_sizes_.push_back(params.size());
    for (size_t i = 0; i < params.size(); ++i) {
      const py::object object = params[i];
      all_params_.push_back(object);
      if (!THPVariable_Check(object.ptr()))
        throw py::type_error(where_ + ": " + param_name(param_groups[g], g, i) + " is not a tensor");
      const at::Tensor param = THPVariable_Unpack(object.ptr());
      if (param.device() != device_) continue;
      names_.push_back(param_name(param_groups[g], g, i));
      const ParamStorage stored = check_param(param, storage_, where_, names_.back());
      const DType grad = *grad_type_of(param.scalar_type());
      const auto* const begin = static_cast<const char*>(param.const_data_ptr());
      if (param.numel() > 0)
        memory.push_back({begin, begin + param.nbytes(), static_cast<uint32_t>(entries_.size()), "the memory"});
      const auto ordinal = static_cast<uint32_t>(all_params_.size() - 1);
      entries_.push_back({object.ptr(), ordinal, Layout(param), stored, stored.param, types_code(stored.kind, grad)});
      n_elements.push_back(param.numel());
      group.push_back(static_cast<uint32_t>(g));
    }
  }
  check_disjoint(memory, where_, names_);
  execution = std::make_unique<Execution>(where_, rule_, device_, n_elements, group, n_groups_, std::move(n_skipped));
  execution->rounding_seed = storage_.rounding_seed;
  group_tables_.resize(2 * n_groups_);
  group_lrs_.resize(n_groups_);
  written_.resize(entries_.size());
}

bool StepPlan::same_structure(const py::list& param_groups) const {
  if (param_groups.size() != n_groups_) return false;
  auto expected = all_params_.begin();
  for (size_t g = 0; g < n_groups_; ++g) {
    const py::list params = params_of(param_groups[g]);
    if (params.size() != group_sizes_[g]) return false;
    for (const py::handle param : params) {
      if (!param.is(*expected++)) return false;
    }
  }
  return true;
}

bool StepPlan::read(const py::dict& state) {
  if (!state.is(state_)) return false;
  if (!states_.unwritten()) find_states();
  return read_entries();
}

// Flat, since StorageImpl::mutable_data and the like are calls otherwise, through the table of procedures.
__attribute__((flatten)) bool StepPlan::read_entries() {
  missing_.clear();
  n_stepped_ = 0;
  converted_grads_.clear();
  kept_.clear();
  const Ordinary ordinary = ordinary_;  // here nothing can change it, and it stays in registers
  TensorRow* row = execution->rows();
  const void** grad = execution->grads();
  Written* next = written_.data();
  for (Entry& entry : entries_) {
    if (!read_entry(entry, ordinary, *row++, *grad, *next)) return false;
    next += *grad++ != nullptr;
  }
  n_stepped_ = static_cast<size_t>(next - written_.data());
  return true;
}

// By address: a look-up by a tensor calls its __hash__ in Python, 40 us for 398 of them.
void StepPlan::find_states() {
  std::vector<py::object> dicts{state_};
  std::unordered_map<PyObject*, PyObject*> state_of;
  for (const auto& [param, state] : state_) {
    state_of[param.ptr()] = state.ptr();
    if (PyDict_Check(state.ptr())) dicts.push_back(py::reinterpret_borrow<py::object>(state));
  }
  states_.watch(std::move(dicts));
  for (Entry& entry : entries_) {
    const auto state = state_of.find(entry.param);
    entry.found = state == state_of.end() ? Found::kNothing : read_values(state->second, rule_, entry.values);
    if (entry.found == Found::kTensors && !has_master_of(entry.values, entry.storage.master_kind))
      entry.found = Found::kOther;
    entry.master = master_of(entry.values, entry.storage.master_kind);
  }
}

bool StepPlan::read_entry(Entry& entry, const Ordinary& ordinary, TensorRow& row, const void*& data, Written& written) {
  const at::Tensor& param = THPVariable_Unpack(entry.param);
  const c10::TensorImpl& impl = *param.unsafeGetTensorImpl();
  void* memory = ordinary.to_write(impl, entry.layout, entry.storage.param);
  if (C10_UNLIKELY(memory == nullptr) && !checked_param(entry, memory)) return false;
  const at::Tensor* const grad = grad_of(impl);
  if (C10_UNLIKELY(entry.found != Found::kTensors)) look_closer(entry, grad);
  if (C10_UNLIKELY(grad == nullptr)) {
    row = TensorRow{};  // so that the parameter's return counts as a move
    data = nullptr;
    return true;
  }
  data = ordinary.to_read(*grad->unsafeGetTensorImpl(), entry.layout, entry.grad);
  if (C10_UNLIKELY(data == nullptr)) data = checked_grad(*grad, entry);
  row.types = entry.types;
  row.ordinal = entry.ordinal;
  point(row.param, memory);
  written.entry = &entry;
  written.versions[0] = version_of(impl);
  if (C10_LIKELY(entry.found == Found::kTensors)) read_state(entry, ordinary, row, written);
  return true;
}

inline void StepPlan::read_state(Entry& entry, const Ordinary& ordinary, TensorRow& row, Written& written) {
  const StateValues& values = entry.values;
  for (int k = 0; k < n_states_; ++k) {
    const c10::TensorImpl& state = *THPVariable_Unpack(values.states[k]).unsafeGetTensorImpl();
    void* const memory = ordinary.state(state, entry.layout);
    point(row.states[k], C10_LIKELY(memory != nullptr) ? memory : checked_state(entry, k));
    written.versions[2 + k] = version_of(state);
  }
  read_master(entry, ordinary, row, written);
  const c10::TensorImpl& step = *THPVariable_Unpack(values.step).unsafeGetTensorImpl();
  float* const memory = ordinary.counter(step);
  point(row.step, C10_LIKELY(memory != nullptr) ? memory : checked_counter(entry, values.step, "step"));
  written.versions[1] = version_of(step);
  if (C10_UNLIKELY(!knows_counter(entry))) {
    remember_counter(entry);
    counters_changed_ = true;
  }
  row.schedule_start = read_start(entry, ordinary, values.schedule_start, "schedule_start");
  row.bias_correction_start = read_start(entry, ordinary, values.bias_correction_start, "bias_correction_start");
}

inline const float* StepPlan::read_start(const Entry& entry, const Ordinary& ordinary, PyObject* value,
                                         const char* key) const {
  if (C10_LIKELY(value == nullptr)) return nullptr;
  const float* const memory = ordinary.counter(*THPVariable_Unpack(value).unsafeGetTensorImpl());
  return C10_LIKELY(memory != nullptr) ? memory : checked_counter(entry, value, key);
}

inline void StepPlan::read_master(const Entry& entry, const Ordinary& ordinary, TensorRow& row, Written& written) {
  written.master_version = nullptr;
  if (C10_LIKELY(entry.master == nullptr)) return point(row.master, static_cast<void*>(nullptr));
  const c10::TensorImpl& master = *THPVariable_Unpack(entry.master).unsafeGetTensorImpl();
  void* const memory = ordinary.to_write(master, entry.layout, entry.storage.master);
  point(row.master, C10_LIKELY(memory != nullptr) ? memory : checked_master(entry));
  written.master_version = version_of(master);
}

inline bool StepPlan::knows_counter(const Entry& entry) {
  const c10::TensorImpl* const impl = THPVariable_Unpack(entry.values.step).unsafeGetTensorImpl();
  return entry.step.ptr() == entry.values.step && entry.step_impl == impl && entry.step_version == *version_of(*impl);
}

void StepPlan::remember_counter(Entry& entry) {
  entry.step = py::reinterpret_borrow<py::object>(entry.values.step);
  entry.step_impl = THPVariable_Unpack(entry.values.step).unsafeGetTensorImpl();
  entry.step_version = *version_of(*entry.step_impl);
}

// Storages rather than tensors: counting references to those may pass through Python.
void StepPlan::keep_memory(const Entry& entry) {
  const at::Tensor& param = THPVariable_Unpack(entry.param);
  kept_.push_back(param.storage());
  kept_.push_back(param.grad().storage());
  const StateValues& values = entry.values;
  for (int k = 0; k < n_states_; ++k) kept_.push_back(THPVariable_Unpack(values.states[k]).storage());
  for (PyObject* const value : {values.step, values.schedule_start, values.bias_correction_start, values.master_param,
                                values.param_remainder}) {
    if (value != nullptr) kept_.push_back(THPVariable_Unpack(value).storage());
  }
}

// Parameters and gradients are the user's to keep, as with every graph; a state may be replaced without a word.
void StepPlan::keep_captured() const {
  CapturedSteps& captured = *execution->captured;
  captured.keep(group_tables_);
  captured.keep(group_lrs_);
  captured.keep(converted_grads_);
  for (size_t i = 0; i < n_stepped_; ++i) {
    const StateValues& values = written_[i].entry->values;
    std::vector<at::Tensor> states;
    for (int k = 0; k < n_states_; ++k) states.push_back(THPVariable_Unpack(values.states[k]));
    for (PyObject* const value : {values.step, values.schedule_start, values.bias_correction_start, values.master_param,
                                  values.param_remainder}) {
      if (value != nullptr) states.push_back(THPVariable_Unpack(value));
    }
    captured.keep(states);
  }
}

template <class Pointer>
inline void StepPlan::point(Pointer& of_row, Pointer memory) {
  if (of_row != memory) memory_moved_ = true;
  of_row = memory;
}

void StepPlan::create_states(const py::function& init_state) {
  for (const size_t i : missing_) init_state(py::handle(entries_[i].param));
  find_states();
  for (const size_t i : missing_)
    if (entries_[i].found == Found::kTensors) remember_counter(entries_[i]);
}

bool StepPlan::prepare(const Scaling* scaling) {
  execution->scaling = scaling != nullptr ? scaling->on(device_) : DeviceScaling{};
  check_overlaps();
  return execution->prepare();
}

void StepPlan::run() {
  // First, since the tensors may go once the GIL is released. A launch is over before anybody else runs. Views share
  // their counter, hence two loops.
  for (size_t i = 0; i < n_stepped_; ++i)
    for (int k = 0; k < 2 + n_states_; ++k) bump(written_[i].versions[k]);
  for (size_t i = 0; i < n_stepped_; ++i)
    if (written_[i].master_version != nullptr) bump(written_[i].master_version);
  for (size_t i = 0; i < n_stepped_; ++i) written_[i].entry->step_version = *written_[i].versions[1];
  if (device_.is_cpu()) {
    for (size_t i = 0; i < n_stepped_; ++i) keep_memory(*written_[i].entry);
    const py::gil_scoped_release released;
    execution->run();
  } else {
    if (execution->is_captured()) keep_captured();
    execution->run();
  }
  kept_.clear();
}

}  // namespace bertadam::binding
