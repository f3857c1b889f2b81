// Clipping by norm and the treatment of non-finite gradients, from one norm.
// c = min(1, max_norm / (norm + 1e-6)) as torch.nn.utils.clip_grad_norm_ has it, in double, rounded once.
#pragma once

#include <math.h>

#include "core/portable.h"

namespace bertadam {

// What a worker is told about a tensor's update: a coefficient in [0, 1] (or NaN, where non-finite gradients
// propagate), or one of these codes.
constexpr float kSkipped = -1.0f;   // leave everything as it is and count the skip
constexpr float kNullStep = -2.0f;  // leave everything as it is: a step that does not count

BERTADAM_HD float clip_coefficient(double norm, double max_grad_norm, bool skip_nonfinite) {
  // Squares of finite floats neither overflow nor vanish in double: the norm is finite exactly if all elements are.
  if (skip_nonfinite && !(norm < HUGE_VAL)) return kSkipped;
  if (!(max_grad_norm > 0.0)) return 1.0f;
  const double coefficient = max_grad_norm / (norm + 1e-6);
  return coefficient >= 1.0 ? 1.0f : static_cast<float>(coefficient);  // a NaN stays a NaN
}

}  // namespace bertadam
