// What a gradient is multiplied by: clipping by norm, the treatment of non-finite gradients, and unscaling.
// c = min(1, max_norm / (norm + epsilon)), with 1e-6 as torch.nn.utils.clip_grad_norm_ has it, or 0 as LAMB's
// pre-normalisation (apex FusedLAMB); and c / scale for gradients of a loss that torch.amp.GradScaler has multiplied by
// `scale`; in double, rounded once.
#pragma once

#include <float.h>
#include <math.h>

#include "core/portable.h"

namespace bertadam {

// What a worker is told about a tensor's update: a coefficient >= 0 (or NaN, where non-finite gradients propagate), or
// one of these codes.
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

struct Clipping {
  double max_grad_norm;  // <= 0: none
  double epsilon;
  bool normalizes;  // also gradients of a smaller norm are brought to max_grad_norm
  bool skips_nonfinite;
};

// `norm`: see gradient_norm.
BERTADAM_HD float clip_coefficient(double norm, const Clipping& clipping, const Unscaling& unscale) {
  if (unscale.skips_step) return kSkipped;
  if (clipping.skips_nonfinite && !all_finite(norm)) return kSkipped;
  double coefficient = clipping.max_grad_norm > 0.0 ? clipping.max_grad_norm / (norm + clipping.epsilon) : 1.0;
  const bool grows = clipping.normalizes && coefficient < HUGE_VAL;
  if (coefficient >= 1.0 && !grows) coefficient = 1.0;  // a NaN stays a NaN
  return static_cast<float>(coefficient * unscale.inverse_scale);
}

}  // namespace bertadam
