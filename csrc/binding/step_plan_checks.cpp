// What a plan does with a tensor that is not ordinary: it looks closer, and finds it good or refuses it by name.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/python_variable.h>

#include "binding/keys.h"
#include "binding/step_plan.h"

namespace py = pybind11;

namespace bertadam::binding {

bool StepPlan::checked_param(const Entry& entry, void*& memory) const {
  const at::Tensor& param = THPVariable_Unpack(entry.param);
  if (param.device() != device_ || !entry.layout.matches(param.sizes(), param.strides())) return false;
  if (param.dtype() != entry.storage.param.dtype) return false;
  check_param(param, storage_, where_, name_of(entry));
  memory = param.mutable_data_ptr();
  return true;
}

void StepPlan::look_closer(const Entry& entry, const at::Tensor* grad) {
  if (entry.found == Found::kNothing && (grad != nullptr || THPVariable_Unpack(entry.param).requires_grad()))
    missing_.push_back(index_of(entry));
  if (entry.found == Found::kOther && grad != nullptr)
    refuse_values(py::object(state_[py::handle(entry.param)]).ptr(), rule_, entry.storage.master_kind,
                  where_ + ": " + name_of(entry) + ": ");
}

const void* StepPlan::checked_grad(const at::Tensor& grad, Entry& entry) {
  const at::Tensor& param = THPVariable_Unpack(entry.param);
  const DType type = check_grad(grad, param, where_, name_of(entry));
  entry.grad = {grad.dtype(), grad.itemsize()};
  entry.types = types_code(entry.storage.kind, type);
  // An empty gradient has no address, and a null one would mean that there is none.
  if (param.numel() == 0) return this;
  if (same_layout(grad, param)) return grad.const_data_ptr();
  const at::NoGradGuard no_grad;  // a gradient may have a graph of its own
  converted_grads_.push_back(at::empty_strided(param.sizes(), param.strides(), grad.options()).copy_(grad));
  return converted_grads_.back().const_data_ptr();
}

void* StepPlan::checked_state(const Entry& entry, int k) const {
  const at::Tensor& state = THPVariable_Unpack(entry.values.states[k]);
  check_state(state,
              {THPVariable_Unpack(entry.param), rule_info(rule_).state_names[k], caffe2::TypeMeta::Make<float>()},
              where_, name_of(entry));
  return state.mutable_data_ptr();
}

void* StepPlan::checked_master(const Entry& entry) const {
  const at::Tensor& master = THPVariable_Unpack(entry.master);
  const auto key = (entry.storage.master_kind == MasterKind::kFloat32 ? keys().master_param : keys().param_remainder)
                       .cast<std::string>();
  check_state(master, {THPVariable_Unpack(entry.param), key.c_str(), entry.storage.master.dtype}, where_,
              name_of(entry));
  return master.mutable_data_ptr();
}

float* StepPlan::checked_counter(const Entry& entry, PyObject* value, const char* key) const {
  const at::Tensor& counter = THPVariable_Unpack(value);
  check_counter(counter, THPVariable_Unpack(entry.param), key, where_, name_of(entry));
  return static_cast<float*>(counter.mutable_data_ptr());
}

void StepPlan::check_overlaps() {
  if (!memory_moved_) return;
  std::vector<Interval> memory;
  const auto add = [&memory](const void* pointer, int64_t bytes, size_t owner, const char* role) {
    const auto* const begin = static_cast<const char*>(pointer);
    if (bytes > 0) memory.push_back({begin, begin + bytes, static_cast<uint32_t>(owner), role});
  };
  for (size_t i = 0; i < entries_.size(); ++i) {
    const TensorRow& row = execution->rows()[i];
    if (execution->grads()[i] == nullptr) continue;
    const ParamStorage& storage = entries_[i].storage;
    const int64_t n = THPVariable_Unpack(entries_[i].param).numel();
    add(row.param, n * static_cast<int64_t>(storage.param.bytes), i, "the memory");
    if (row.master != nullptr) add(row.master, n * static_cast<int64_t>(storage.master.bytes), i, "the master");
    for (int k = 0; k < n_states_; ++k) {
      add(row.states[k], n * static_cast<int64_t>(sizeof(float)), i, rule_info(rule_).state_names[k]);
    }
    add(row.step, sizeof(float), i, "step");
  }
  check_disjoint(memory, where_, names_);
  memory_moved_ = false;
}

}  // namespace bertadam::binding
