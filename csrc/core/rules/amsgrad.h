// AMSGrad, one element: Adam that divides by the root of the largest v so far.
// Reddi, Kale, Kumar 2018, algorithm 2, as torch.optim.Adam has it (_single_tensor_adam): the maximum is taken of v
// before its bias correction, and corrected by the present step.
#pragma once

#include "core/portable.h"
#include "core/rules/adam.h"
#include "core/scalars.h"

namespace bertadam {

struct Amsgrad {
  static constexpr int kNumStates = 3;
  static constexpr const char* kStateNames[kNumStates] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr bool kHasTrustRatio = false;

  template <class Math>
  BERTADAM_HD static float update(Math& math, const GroupScalars& group, const TensorScalars& tensor, float raw_grad,
                                  float p, float (&states)[kNumStates]) {
    const float largest = states[2];
    Adam::move_moments(group, Adam::gradient(group, tensor, raw_grad, p), states[0], states[1]);
    const float v = states[1];
    states[2] = v > largest || v != v ? v : largest;  // a NaN on either side stays, as in torch.maximum
    return Adam::direction(math, group, tensor, states[0], states[2], p);
  }
};

}  // namespace bertadam
