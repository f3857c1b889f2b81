// What an update is scaled by to be as long as a share of its tensor.
#pragma once

#include <float.h>

#include "core/portable.h"

namespace bertadam {

// One that is beyond a float, of an update that is next to nothing, is the largest float: infinity would take the
// parameter along. A NaN stays one.
BERTADAM_HD float rounded_ratio(double ratio) { return ratio > FLT_MAX ? FLT_MAX : static_cast<float>(ratio); }

}  // namespace bertadam
