#include "core/rules/adam.h"
#include "core/types.h"
#include "cuda/engine.cuh"
#include "cuda/kernels.h"

namespace bertadam::cuda {

Kernel adam_float32_kernel() { return step_kernel<Adam, Float32Row>; }

Kernel adam_float32_update_kernel() { return update_kernel<Adam, Float32Row>; }

}  // namespace bertadam::cuda
