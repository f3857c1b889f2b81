#include "core/rules/adam.h"
#include "cuda/engine.cuh"

namespace bertadam::cuda {

Instance adam_any() { return instance<Adam, AnyRow>(); }

}  // namespace bertadam::cuda
