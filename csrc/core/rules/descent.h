// The last line of every rule: p <- p - lr * update.
#pragma once

#include <math.h>

#include "core/portable.h"

namespace bertadam {

BERTADAM_HD float descend(float p, float lr, float update) {
  // A product that vanishes leaves p bit for bit, -0 included; a NaN product reaches p.
  return lr * update == 0.0f ? p : fmaf(-lr, update, p);
}

}  // namespace bertadam
