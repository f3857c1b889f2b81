// LAMB, one element: Adam whose update is made as long as a share of its tensor.
// You et al. 2020, algorithm 2, with the settings of apex FusedLAMB (multi_tensor_lamb.cu): the update of AdamW or of
// Adam with L2 decay, times ||p|| / ||u||.
#pragma once

#include "core/portable.h"
#include "core/rules/adam.h"
#include "core/rules/descent.h"
#include "core/rules/trust_ratio.h"
#include "core/scalars.h"

namespace bertadam {

struct Lamb {
  static constexpr int kNumStates = 2;
  static constexpr const char* kStateNames[kNumStates] = {"exp_avg", "exp_avg_sq"};
  static constexpr bool kHasTrustRatio = true;
  static constexpr bool kSurveyMovesStates = true;
  static constexpr bool kApplyMovesStates = false;
  static constexpr bool kRecallsGrad = false;

  // Moves the moments and returns the update.
  template <class Math>
  BERTADAM_HD static float survey(Math& math, const GroupScalars& group, const TensorScalars& tensor, float raw_grad,
                                  float p, float (&states)[kNumStates]) {
    return Adam::update(math, group, tensor, raw_grad, p, states);
  }

  // The same update from the moved moments.
  template <class Math>
  BERTADAM_HD static float recall(Math& math, const GroupScalars& group, const TensorScalars& tensor, float, float p,
                                  const float (&states)[kNumStates]) {
    return Adam::direction(math, group, tensor, states[0], states[1], p);
  }

  BERTADAM_HD static float trust_ratio(const GroupScalars& group, double param_norm, double update_norm) {
    const bool adapts = group.adapts && param_norm != 0.0 && update_norm != 0.0;
    return adapts ? rounded_ratio(param_norm / update_norm) : 1.0f;
  }

  // `tensor.lr` has the trust ratio in it.
  BERTADAM_HD static float apply(const GroupScalars&, const TensorScalars& tensor, float update, float p,
                                 float (&)[kNumStates]) {
    return descend(p, tensor.lr, update);
  }
};

}  // namespace bertadam
