// The one list of supported (parameter, gradient, state) storage types. It drives the kernel instances, the
// dispatch, the error texts and the tests: to support a row, add it here and instantiate it in cuda/instances.
#pragma once

#include "core/dtypes.h"

namespace bertadam {

template <class ParamT, class GradT, class StateT>
struct TypeRow {
  using Param = ParamT;
  using Grad = GradT;
  using State = StateT;
};

using Float32Row = TypeRow<float, float, float>;

// X(row, parameter dtype, gradient dtype, state dtype), dtypes by torch's names.
#define BERTADAM_FOR_EACH_TYPE_ROW(X) X(Float32Row, "float32", "float32", "float32")

}  // namespace bertadam
