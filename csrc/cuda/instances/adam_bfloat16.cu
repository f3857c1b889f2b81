#include "core/rules/adam.h"
#include "cuda/engine.cuh"

namespace bertadam::cuda {

Instance adam_bfloat16() { return instance<Adam, OneRow<TypeRow<Plain<BFloat16>, BFloat16>>>(); }
Instance adam_bfloat16_master() { return instance<Adam, OneRow<TypeRow<WithMaster<BFloat16>, BFloat16>>>(); }
Instance adam_bfloat16_remainder() { return instance<Adam, OneRow<TypeRow<WithRemainder, BFloat16>>>(); }

}  // namespace bertadam::cuda
