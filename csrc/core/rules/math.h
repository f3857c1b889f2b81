// The square root and the division that rules are written with: correctly rounded, as IEEE 754 has them.
//
// A rule takes them from its caller, because a GPU can do better than its compiler for almost all arguments (see
// cuda/ranged_math.cuh): the same bits, in fewer instructions that do not branch.
#pragma once

#include <math.h>

#include "core/portable.h"

namespace bertadam {

struct IeeeMath {
  BERTADAM_HD float square_root(float x) const { return sqrtf(x); }
  // 0 for a zero numerator, whatever the denominator is.
  BERTADAM_HD float divide(float numerator, float denominator) const {
    return numerator == 0.0f ? 0.0f : numerator / denominator;
  }
};

}  // namespace bertadam
