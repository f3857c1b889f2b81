#include "core/rules/adam.h"
#include "cuda/engine.cuh"

namespace bertadam::cuda {

Instance adam_float16() { return instance<Adam, OneRow<TypeRow<Plain<Float16>, Float16>>>(); }
Instance adam_float16_master() { return instance<Adam, OneRow<TypeRow<WithMaster<Float16>, Float16>>>(); }

}  // namespace bertadam::cuda
