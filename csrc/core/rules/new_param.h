// An element's whole update, whatever the rule.
#pragma once

#include "core/portable.h"
#include "core/rules/descent.h"
#include "core/scalars.h"

namespace bertadam {

// Moves the states; returns the new parameter. A rule with a trust ratio has been surveyed before.
template <class Rule, class Math>
BERTADAM_HD float new_param(Math& math, const GroupScalars& group, const TensorScalars& tensor, float raw_grad, float p,
                            float (&states)[Rule::kNumStates]) {
  if constexpr (Rule::kHasTrustRatio) {
    return Rule::apply(group, tensor, Rule::recall(math, group, tensor, raw_grad, p, states), p, states);
  } else {
    return descend(p, tensor.lr, Rule::update(math, group, tensor, raw_grad, p, states));
  }
}

}  // namespace bertadam
