// A group's settings as Python has them, and as a step takes them.
#pragma once

#include "core/scalars.h"

namespace bertadam::binding {

struct GroupSettings {
  double lr, beta1, beta2, eps, weight_decay, l2_decay, max_grad_norm, clip_epsilon;
  bool normalizes_always, maximize;
  bool grad_averaging;  // the gradient enters the first moment with 1 - beta1, else with 1
  bool adapts, nesterov;
  double momentum, trust_coefficient;
};

// All but the tables.
inline GroupScalars scalars_of(const GroupSettings& s) {
  GroupScalars group{};
  group.lr = s.lr;
  group.max_grad_norm = s.max_grad_norm;
  group.clip_epsilon = s.clip_epsilon;
  group.normalizes = s.normalizes_always;
  group.beta1 = split(s.beta1);
  group.one_minus_beta1 = split(s.grad_averaging ? 1.0 - s.beta1 : 1.0);
  group.beta2 = split(s.beta2);
  group.one_minus_beta2 = split(1.0 - s.beta2);
  group.eps = static_cast<float>(s.eps);
  group.weight_decay = static_cast<float>(s.weight_decay);
  group.l2_decay = static_cast<float>(s.l2_decay);
  group.grad_sign = s.maximize ? -1.0f : 1.0f;
  group.momentum = static_cast<float>(s.momentum);
  group.trust_coefficient = static_cast<float>(s.trust_coefficient);
  group.adapts = s.adapts;
  group.nesterov = s.nesterov;
  return group;
}

}  // namespace bertadam::binding
