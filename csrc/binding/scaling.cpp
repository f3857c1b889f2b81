#include "binding/scaling.h"

#include <torch/csrc/autograd/python_variable.h>

#include "binding/checks.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

at::Tensor checked(py::handle value, const char* name, const std::string& where) {
  if (value.is_none()) return {};
  if (!THPVariable_Check(value.ptr())) {
    throw py::type_error(where + ": " + name + " is " + py::repr(value).cast<std::string>() +
                         ", expected a tensor of one float32, as torch.amp.GradScaler sets it; remove the attribute, "
                         "or make it one with torch.tensor(...)");
  }
  const at::Tensor tensor = THPVariable_Unpack(value.ptr());
  check_scaler_value(tensor, name, where);
  return tensor;
}

// A copy to the CPU is waited for: nobody else would see to it that it has arrived.
at::Tensor moved(const at::Tensor& tensor, at::Device device) {
  if (!tensor.defined() || tensor.device() == device) return tensor;
  return tensor.to(device, tensor.scalar_type(), /*non_blocking=*/!device.is_cpu());
}

}  // namespace

Scaling::Scaling(std::string where, py::handle grad_scale, py::handle found_inf, bool finds_inf)
    : where_(std::move(where)),
      scaling_{checked(grad_scale, "grad_scale", where_), checked(found_inf, "found_inf", where_), finds_inf} {}

DeviceScaling Scaling::on(at::Device device) const {
  if (scaling_.finds_inf && (!scaling_.found_inf.defined() || scaling_.found_inf.device() != device)) {
    throw std::runtime_error(
        where_ + ": parameters are on " + device.str() +
        ", but this step of bertadam_cuda.amp.GradScaler finds infinities on another device alone; "
        "were they moved since the last step? Call scaler.step(optimizer) again");
  }
  return {moved(scaling_.grad_scale, device), moved(scaling_.found_inf, device), scaling_.finds_inf};
}

}  // namespace bertadam::binding
