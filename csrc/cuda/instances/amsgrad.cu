#include "core/rules/amsgrad.h"
#include "cuda/engine.cuh"

namespace bertadam::cuda {

Instance amsgrad_any() { return instance<Amsgrad, AnyRow>(); }

}  // namespace bertadam::cuda
