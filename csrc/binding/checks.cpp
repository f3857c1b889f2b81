#include "binding/checks.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <sstream>

#include "core/types.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// torch's Python names of the dtypes that a user is likely to bring.
const char* dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kComplexFloat:
      return "complex64";
    case at::kComplexDouble:
      return "complex128";
    case at::kByte:
      return "uint8";
    case at::kChar:
      return "int8";
    case at::kShort:
      return "int16";
    case at::kInt:
      return "int32";
    case at::kLong:
      return "int64";
    case at::kBool:
      return "bool";
    default:
      return c10::toString(type);
  }
}

std::string supported_dtypes() {
  std::string names;
#define BERTADAM_NAME(type, Grad, name) names += std::string(names.empty() ? "" : ", ") + name;
  BERTADAM_FOR_EACH_GRAD(BERTADAM_NAME)
#undef BERTADAM_NAME
  return "supported are parameters of " + names + ", each with gradients of any of these";
}

// Whether all elements lie inside the storage, for a tensor without gaps. A freed or shrunk storage has no address
// or too few bytes, while the tensor's sizes stay.
bool has_memory(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  const size_t needed = static_cast<size_t>(tensor.storage_offset() + tensor.numel()) * tensor.itemsize();
  return tensor.const_data_ptr() != nullptr && tensor.storage().nbytes() >= needed;
}

}  // namespace

ParamStorage check_param(const at::Tensor& param, const StorageSettings& settings, const std::string& where,
                         const std::string& name) {
  if (param.layout() != at::kStrided) {
    throw py::type_error(text(where, ": ", name, " has layout ", param.layout(),
                              ", expected a dense tensor; convert it with .to_dense()"));
  }
  if (param.is_meta()) {
    throw std::runtime_error(
        text(where, ": ", name,
             " is on the meta device and has no data; materialise it with module.to_empty(device=...) first"));
  }
  if (!param.is_cpu() && !param.is_cuda()) {
    throw std::runtime_error(text(where, ": ", name, " is on device ", param.device(), ", expected cpu or cuda"));
  }
  const std::optional<ParamStorage> storage = storage_of(param.scalar_type(), settings, text(where, ": ", name));
  if (!storage) {
    throw py::type_error(text(where, ": ", name, " has dtype ", dtype_name(param.scalar_type()), "; ",
                              supported_dtypes(), "; cast the parameter, for example with module.float()"));
  }
  if (!param.is_non_overlapping_and_dense()) {
    throw py::value_error(
        text(where, ": ", name, " has shape ", param.sizes(), " and strides ", param.strides(),
             ", which leave gaps or overlap (a slice or an expanded tensor); expected memory that is dense up to a "
             "permutation of the dimensions: make it a parameter of its own with .detach().clone()"));
  }
  if (param.is_inference() || param.is_neg()) {
    throw std::runtime_error(text(where, ": ", name,
                                  " is an inference tensor or a lazily negated view, and cannot be updated; make it an "
                                  "ordinary tensor with .clone() outside of torch.inference_mode()"));
  }
  if (!has_memory(param)) {
    throw std::runtime_error(
        text(where, ": ", name, " has ", param.numel(), " elements and a storage of ", param.storage().nbytes(),
             " bytes; its storage was freed or resized (a sharded module outside of its forward and backward?)"));
  }
  return *storage;
}

DType check_grad(const at::Tensor& grad, const at::Tensor& param, const std::string& where, const std::string& name) {
  if (grad.layout() != at::kStrided) {
    throw std::runtime_error(text(
        where, ": the gradient of ", name, " is sparse (layout ", grad.layout(),
        "), expected a dense one; use torch.optim.SparseAdam for this parameter, or sparse=False in the embedding"));
  }
  if (grad.device() != param.device()) {
    throw std::runtime_error(text(where, ": the gradient of ", name, " is on ", grad.device(), ", expected ",
                                  param.device(), " as the parameter; move the gradient"));
  }
  const std::optional<DType> type = grad_type_of(grad.scalar_type());
  if (!type) {
    throw py::type_error(text(where, ": the gradient of ", name, " has dtype ", dtype_name(grad.scalar_type()), "; ",
                              supported_dtypes(), "; cast the gradient"));
  }
  if (grad.sizes() != param.sizes()) {
    throw py::value_error(text(where, ": the gradient of ", name, " has shape ", grad.sizes(), ", expected ",
                               param.sizes(), " as the parameter; assign a gradient of that shape"));
  }
  if (grad.is_non_overlapping_and_dense() && !has_memory(grad)) {
    throw std::runtime_error(text(where, ": the gradient of ", name, " has ", grad.numel(),
                                  " elements and a storage of ", grad.storage().nbytes(),
                                  " bytes; its storage was freed or resized"));
  }
  return *type;
}

void check_state(const at::Tensor& state, const StateOf& of, const std::string& where, const std::string& name) {
  const auto& [param, key, dtype] = of;
  if (state.device() != param.device()) {
    throw std::runtime_error(
        text(where, ": ", name, ": state '", key, "' is on ", state.device(), ", expected ", param.device(),
             " as the parameter; move the state, or load it with load_state_dict after moving the module"));
  }
  if (state.layout() != at::kStrided || state.dtype() != dtype) {
    throw py::type_error(text(where, ": ", name, ": state '", key, "' has dtype ", dtype_name(state.scalar_type()),
                              " and layout ", state.layout(), ", expected dense ",
                              dtype_name(c10::typeMetaToScalarType(dtype)),
                              "; load states with load_state_dict, which keeps their dtypes"));
  }
  if (state.sizes() != param.sizes()) {
    throw py::value_error(
        text(where, ": ", name, ": state '", key, "' has shape ", state.sizes(), ", expected ", param.sizes(),
             " as the parameter; remove optimizer.state[parameter] to start it anew, or load matching states"));
  }
  if (!same_layout(state, param)) {
    throw py::value_error(text(where, ": ", name, ": state '", key, "' has strides ", state.strides(), ", expected ",
                               param.strides(), " as the parameter; use torch.empty_like(parameter).copy_(state)"));
  }
  if (state.is_inference() || state.is_neg() || !has_memory(state)) {
    throw std::runtime_error(text(where, ": ", name, ": state '", key,
                                  "' cannot be written (an inference tensor, a negated view, or its storage was freed "
                                  "or resized); replace it by an ordinary tensor"));
  }
}

void check_counter(const at::Tensor& counter, const at::Tensor& param, const char* key, const std::string& where,
                   const std::string& name) {
  if (counter.device() != param.device()) {
    throw std::runtime_error(text(where, ": ", name, ": state '", key, "' is on ", counter.device(), ", expected ",
                                  param.device(), " as the parameter; move it, or load it with load_state_dict"));
  }
  if (counter.scalar_type() != at::kFloat || counter.dim() != 0 || counter.is_inference()) {
    throw py::type_error(text(where, ": ", name, ": state '", key, "' has dtype ", dtype_name(counter.scalar_type()),
                              " and shape ", counter.sizes(),
                              ", expected a 0-dim float32 tensor; load it with load_state_dict"));
  }
  if (counter.is_neg() || !has_memory(counter)) {
    throw std::runtime_error(text(where, ": ", name, ": state '", key,
                                  "' is a negated view, or its storage was freed or resized; replace it by an ordinary "
                                  "tensor"));
  }
}

void check_scaler_value(const at::Tensor& value, const char* name, const std::string& where) {
  if (value.layout() == at::kStrided && value.scalar_type() == at::kFloat && value.numel() == 1 && !value.is_neg() &&
      !value.is_meta() && has_memory(value)) {
    return;
  }
  throw py::type_error(text(where, ": ", name, " has dtype ", dtype_name(value.scalar_type()), ", shape ",
                            value.sizes(), " and layout ", value.layout(), " on ", value.device(),
                            ", expected one float32, as torch.amp.GradScaler sets it; convert it, or remove the "
                            "attribute"));
}

void check_disjoint(std::vector<Interval>& intervals, const std::string& where, const std::vector<std::string>& names) {
  std::sort(intervals.begin(), intervals.end(), [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < intervals.size(); ++i) {
    const Interval& before = intervals[i - 1];
    const Interval& after = intervals[i];
    if (before.end <= after.begin) continue;
    throw py::value_error(
        text(where, ": ", before.role, " of ", names[before.owner], " and ", after.role, " of ", names[after.owner],
             " share memory (", before.end - after.begin,
             " bytes); the step writes both: give each its own memory, or pass a tied parameter once"));
  }
}

bool same_layout(const at::Tensor& grad, const at::Tensor& param) {
  if (grad.is_neg()) return false;
  if (grad.strides() == param.strides()) return true;
  if (param.numel() == 0) return true;
  for (int64_t d = 0; d < param.dim(); ++d) {
    if (param.size(d) != 1 && grad.stride(d) != param.stride(d)) return false;
  }
  return true;
}

}  // namespace bertadam::binding
