// What is uniform in a step: per group (computed in double on the host) and per tensor (derived from the group
// by the worker that holds the tensor, with additions, multiplications and table look-ups only).
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace bertadam {

// A double as the sum of two floats, good to 2^-48 relative. One float is not enough for a moment's coefficients:
// float(1 - 0.999) alone biases exp_avg_sq by 1.3e-5 in the long run, 1 - float(0.999) costs 217 ulp per step.
struct SplitFloat {
  float hi, lo;
};

BERTADAM_HD SplitFloat split(double x) {
  const float hi = static_cast<float>(x);
  return SplitFloat{hi, static_cast<float>(x - static_cast<double>(hi))};
}

// Reciprocals of 1 - beta1^t and 1 - beta2^t, evaluated on the host.
struct BiasCorrection {
  double inv_1, inv_2;
};

struct GroupScalars {
  double lr;                          // base learning rate, before the schedule; NaN where it is on the device
  double max_grad_norm;               // <= 0: no clipping
  double clip_epsilon;                // added to the norm that it is compared with
  SplitFloat beta1, one_minus_beta1;  // the complements are taken in double
  SplitFloat beta2, one_minus_beta2;
  float eps;
  float weight_decay;  // decoupled; <= 0: none
  float l2_decay;      // added to the gradient; <= 0: none
  float grad_sign;     // -1 to maximise
  float momentum;
  float trust_coefficient;
  uint32_t needs_norm;  // its tensors are clipped or checked for non-finite gradients
  bool normalizes;      // gradients are brought to max_grad_norm, also from below
  bool adapts;          // its tensors have a trust ratio
  bool nesterov;
  // Schedule multipliers by position and bias corrections by t - 1. Past the end the last entry holds. A null
  // `corrections` means no bias correction.
  const double* multipliers;
  int64_t n_multipliers;
  const BiasCorrection* corrections;
  int64_t n_corrections;
  // Where the base learning rate is on the device: the step reads it, so that who writes it reaches captured steps,
  // too. One of the two at most.
  const float* lr_float32;
  const double* lr_float64;

  BERTADAM_HD bool has_lr_on_device() const { return lr_float32 != nullptr || lr_float64 != nullptr; }
  BERTADAM_HD double base_lr() const {
    if (lr_float64 != nullptr) return *lr_float64;
    return lr_float32 != nullptr ? static_cast<double>(*lr_float32) : lr;
  }
};

struct TensorScalars {
  float grad_scale;  // clip coefficient times sign: what a gradient element is multiplied by
  float lr;
  float inv_bias_1, inv_bias_2;
};

BERTADAM_HD int64_t table_index(float position, int64_t n_entries) {
  if (!(position > 0.0f)) return 0;
  return position < static_cast<float>(n_entries - 1) ? static_cast<int64_t>(position) : n_entries - 1;
}

// `step` is the count before this update; the starts are the counts at which the schedule and the bias
// correction began (0 unless reset_schedule moved them).
BERTADAM_HD TensorScalars tensor_scalars(const GroupScalars& group, float clip_coefficient, float step,
                                         float schedule_start, float bias_correction_start) {
  const double multiplier = group.multipliers[table_index(step - schedule_start, group.n_multipliers)];
  TensorScalars s{clip_coefficient * group.grad_sign, static_cast<float>(group.base_lr() * multiplier), 1.0f, 1.0f};
  if (group.corrections != nullptr) {
    const BiasCorrection& c = group.corrections[table_index(step - bias_correction_start, group.n_corrections)];
    s.inv_bias_1 = static_cast<float>(c.inv_1);
    s.inv_bias_2 = static_cast<float>(c.inv_2);
  }
  return s;
}

}  // namespace bertadam
