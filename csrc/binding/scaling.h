// What torch.amp.GradScaler leaves at an optimizer for its step, `grad_scale` and `found_inf`, checked and brought to
// the device of each plan. Their values stay on the device: the step's workers read them.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "binding/device_scaling.h"

namespace bertadam::binding {

class Scaling {
 public:
  // None, or tensors of one float32. `where`: the optimizer's name.
  Scaling(std::string where, pybind11::handle grad_scale, pybind11::handle found_inf, bool finds_inf);

  DeviceScaling on(at::Device device) const;

 private:
  const std::string where_;
  DeviceScaling scaling_;  // as it was given
};

}  // namespace bertadam::binding
