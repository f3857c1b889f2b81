// What a gradient is multiplied by: clipping by norm, the treatment of non-finite gradients, and unscaling.
// c = min(1, max_norm / (norm + 1e-6)) as torch.nn.utils.clip_grad_norm_ has it, and c / scale for gradients of a loss
// that torch.amp.GradScaler has multiplied by `scale`; in double, rounded once.
#pragma once

#include <float.h>
#include <math.h>

#include "core/portable.h"

namespace bertadam {

// What a worker is told about a tensor's update: a coefficient >= 0, at most 1 / scale (or NaN, where non-finite
// gradients propagate), or one of these codes.
constexpr float kSkipped = -1.0f;   // leave everything as it is and count the skip
constexpr float kNullStep = -2.0f;  // leave everything as it is: a step that does not count

// From a sum of squares, or its root: squares of finite floats neither overflow nor vanish in double.
BERTADAM_HD bool all_finite(double sum_of_squares) { return sum_of_squares < HUGE_VAL; }

// A scaler's wishes. Where the scale is no positive number, or a float cannot hold 1 / scale, nothing is updated.
struct Unscaling {
  double inverse_scale;
  bool skips_step;  // the whole one
};

// `found_inf`: 0 where all gradients are finite. It may count devices, and be NaN.
BERTADAM_HD Unscaling unscaling(float scale, float found_inf) {
  const bool usable = scale >= FLT_MIN && scale < HUGE_VALF;
  return {1.0 / static_cast<double>(scale), !usable || found_inf != 0.0f};
}

// Of the gradients before they were scaled.
BERTADAM_HD double gradient_norm(double sum_of_squares, const Unscaling& unscale) {
  return sqrt(sum_of_squares) * unscale.inverse_scale;
}

// What clipping alone multiplied by, 0 for a code, from a coefficient (that is no subnormal number): exactly where the
// scale is a power of two, as scalers' are, else within one unit in the last place.
BERTADAM_HD float without_unscaling(float coefficient, const Unscaling& unscale) {
  return coefficient < 0.0f ? 0.0f : static_cast<float>(static_cast<double>(coefficient) / unscale.inverse_scale);
}

// For a tensor that no norm is taken of.
BERTADAM_HD float unclipped_coefficient(const Unscaling& unscale) {
  return unscale.skips_step ? kSkipped : static_cast<float>(unscale.inverse_scale);
}

// `norm`: see gradient_norm.
BERTADAM_HD float clip_coefficient(double norm, double max_grad_norm, bool skip_nonfinite, const Unscaling& unscale) {
  if (unscale.skips_step) return kSkipped;
  if (skip_nonfinite && !all_finite(norm)) return kSkipped;
  const double coefficient = max_grad_norm > 0.0 ? max_grad_norm / (norm + 1e-6) : 1.0;
  return static_cast<float>((coefficient >= 1.0 ? 1.0 : coefficient) * unscale.inverse_scale);  // a NaN stays a NaN
}

}  // namespace bertadam
