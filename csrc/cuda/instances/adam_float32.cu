#include "core/rules/adam.h"
#include "cuda/engine.cuh"

namespace bertadam::cuda {

Instance adam_float32() { return instance<Adam, OneRow<Float32Row>>(); }

}  // namespace bertadam::cuda
