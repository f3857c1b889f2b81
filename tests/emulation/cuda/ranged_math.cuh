// In place of csrc/cuda/ranged_math.cuh, whose hardware approximations have no equal here: exact, but for arguments
// that it says are out of its range and answers with nonsense.
#pragma once

#include "core/rules/math.h"

namespace bertadam::cuda {

class RangedMath {
 public:
  bool exact() const { return exact_; }
  float square_root(float x) { return in_range(x) ? IeeeMath{}.square_root(x) : -1.0f; }
  float divide(float numerator, float denominator) {
    return in_range(numerator) ? IeeeMath{}.divide(numerator, denominator) : -1.0f;
  }

 private:
  // Every 64th value or so, so that some vectors are done again.
  bool in_range(float x) {
    const bool is_in = float_bits(x) % 64 != 0;
    exact_ = exact_ && is_in;
    return is_in;
  }

  bool exact_ = true;
};

}  // namespace bertadam::cuda
