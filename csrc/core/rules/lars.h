// LARS, one element: momentum SGD with a learning rate for each tensor.
// You, Gitman, Ginsburg 2017, algorithm 1 and equation 6: the buffer takes in lr * ratio * (g + decay * p), so that a
// change of lr leaves what is in the buffer alone. Nesterov momentum as torch.optim.SGD has it.
#pragma once

#include <math.h>

#include "core/portable.h"
#include "core/rules/descent.h"
#include "core/rules/trust_ratio.h"
#include "core/scalars.h"

namespace bertadam {

struct Lars {
  static constexpr int kNumStates = 1;
  static constexpr const char* kStateNames[kNumStates] = {"momentum_buffer"};
  static constexpr bool kHasTrustRatio = true;
  static constexpr bool kSurveyMovesStates = false;
  static constexpr bool kApplyMovesStates = true;
  static constexpr bool kRecallsGrad = true;

  // The gradient, clipped and signed.
  template <class Math>
  BERTADAM_HD static float survey(Math&, const GroupScalars&, const TensorScalars& tensor, float raw_grad, float,
                                  float (&)[kNumStates]) {
    return tensor.grad_scale * raw_grad;
  }

  template <class Math>
  BERTADAM_HD static float recall(Math&, const GroupScalars&, const TensorScalars& tensor, float raw_grad, float,
                                  const float (&)[kNumStates]) {
    return tensor.grad_scale * raw_grad;
  }

  BERTADAM_HD static float trust_ratio(const GroupScalars& group, double param_norm, double grad_norm) {
    if (!group.adapts || param_norm == 0.0 || grad_norm == 0.0) return 1.0f;
    const double denominator = grad_norm + static_cast<double>(group.weight_decay) * param_norm + group.eps;
    return rounded_ratio(static_cast<double>(group.trust_coefficient) * param_norm / denominator);
  }

  // `tensor.lr` has the trust ratio in it.
  BERTADAM_HD static float apply(const GroupScalars& group, const TensorScalars& tensor, float g, float p,
                                 float (&states)[kNumStates]) {
    const float decayed = group.weight_decay > 0.0f ? fmaf(group.weight_decay, p, g) : g;
    const float step = tensor.lr * decayed;
    states[0] = fmaf(group.momentum, states[0], step);
    return descend(p, 1.0f, group.nesterov ? fmaf(group.momentum, states[0], step) : states[0]);
  }
};

}  // namespace bertadam
