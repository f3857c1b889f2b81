// A group's settings as Python has them, and as a step takes them.
#pragma once

#include "core/scalars.h"

namespace bertadam::binding {

struct GroupSettings {
  double lr, beta1, beta2, eps, weight_decay, l2_decay, max_grad_norm;
  bool maximize;
};

// All but the tables.
inline GroupScalars scalars_of(const GroupSettings& s) {
  GroupScalars group{};
  group.lr = s.lr;
  group.max_grad_norm = s.max_grad_norm;
  group.beta1 = split(s.beta1);
  group.one_minus_beta1 = split(1.0 - s.beta1);
  group.beta2 = split(s.beta2);
  group.one_minus_beta2 = split(1.0 - s.beta2);
  group.eps = static_cast<float>(s.eps);
  group.weight_decay = static_cast<float>(s.weight_decay);
  group.l2_decay = static_cast<float>(s.l2_decay);
  group.grad_sign = s.maximize ? -1.0f : 1.0f;
  return group;
}

}  // namespace bertadam::binding
