// What a scaler gives to the step of one device.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/step_args.h"

namespace bertadam::binding {

// Tensors of one float32. Undefined ones are not there.
struct DeviceScaling {
  at::Tensor grad_scale, found_inf;
  bool finds_inf = false;  // the step writes `found_inf` instead of reading it

  bool is_used() const { return grad_scale.defined() || found_inf.defined(); }
  ScalerArgs args() const {
    ScalerArgs args{};
    if (grad_scale.defined()) args.grad_scale = grad_scale.const_data_ptr<float>();
    if (found_inf.defined() && !finds_inf) args.found_inf = found_inf.const_data_ptr<float>();
    if (found_inf.defined() && finds_inf) args.finds_inf = found_inf.mutable_data_ptr<float>();
    return args;
  }
};

}  // namespace bertadam::binding
