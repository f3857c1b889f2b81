// Adam, one element. BertAdam, Adam and AdamW differ in their scalars only.
// Kingma & Ba 2015, algorithm 1, with either decay of Loshchilov & Hutter 2019, algorithm 2: decoupled, as the BERT
// optimizer orders it, where the decay is added to the update and scaled by the learning rate with it
// (google-research/bert optimization.py, AdamWeightDecayOptimizer); or as L2, added to the gradient before the moments
// (torch.optim.Adam, _single_tensor_adam).
#pragma once

#include <math.h>

#include "core/portable.h"
#include "core/scalars.h"

namespace bertadam {

struct Adam {
  static constexpr int kNumStates = 2;
  static constexpr const char* kStateNames[kNumStates] = {"exp_avg", "exp_avg_sq"};
  static constexpr bool kHasTrustRatio = false;

  // Updates the states in place and returns the update before the learning rate. `math`: see math.h. Every operation is
  // rounded once, in this order, on every backend: m is within 1.5 ulp of its larger addend, v within 1 ulp.
  template <class Math>
  BERTADAM_HD static float update(Math& math, const GroupScalars& group, const TensorScalars& tensor, float raw_grad,
                                  float p, float (&states)[kNumStates]) {
    move_moments(group, gradient(group, tensor, raw_grad, p), states[0], states[1]);
    return direction(math, group, tensor, states[0], states[1], p);
  }

  // Clipped, signed and with the L2 decay.
  BERTADAM_HD static float gradient(const GroupScalars& group, const TensorScalars& tensor, float raw_grad, float p) {
    const float g = tensor.grad_scale * raw_grad;
    return group.l2_decay > 0.0f ? fmaf(group.l2_decay, p, g) : g;
  }

  BERTADAM_HD static void move_moments(const GroupScalars& group, float g, float& m, float& v) {
    m = fmaf(group.beta1.hi, m,
             fmaf(group.one_minus_beta1.hi, g, fmaf(group.one_minus_beta1.lo, g, group.beta1.lo * m)));
    // g*g as an exact sum of two floats: its rounding error alone would be half an ulp of v.
    const float g_sq = g * g;
    const float low =
        fmaf(group.one_minus_beta2.hi, fmaf(g, g, -g_sq), fmaf(group.one_minus_beta2.lo, g_sq, group.beta2.lo * v));
    const float precise = fmaf(group.beta2.hi, v, fmaf(group.one_minus_beta2.hi, g_sq, low));
    // Where a square or v has overflowed, the small terms are infinities of either sign.
    const float overflowed = fmaf(group.beta2.hi, v, group.one_minus_beta2.hi * g_sq);
    v = g_sq < HUGE_VALF && v < HUGE_VALF ? precise : overflowed;
  }

  // m over the root of `v`, both corrected, and the decoupled decay.
  template <class Math>
  BERTADAM_HD static float direction(Math& math, const GroupScalars& group, const TensorScalars& tensor, float m,
                                     float v, float p) {
    const float numerator = m * tensor.inv_bias_1;
    const float denominator = math.square_root(v * tensor.inv_bias_2) + group.eps;
    const float quotient = math.divide(numerator, denominator);  // 0 for a zero moment, also where eps = 0
    const float decayed = fmaf(group.weight_decay, p, quotient);
    return group.weight_decay > 0.0f ? decayed : quotient;
  }
};

}  // namespace bertadam
