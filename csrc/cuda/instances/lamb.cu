#include "core/rules/lamb.h"
#include "cuda/ratio_engine.cuh"

namespace bertadam::cuda {

Instance lamb_float32() { return ratio_instance<Lamb, OneRow<Float32Row>>(); }
Instance lamb_bfloat16_master() { return ratio_instance<Lamb, OneRow<TypeRow<WithMaster<BFloat16>, BFloat16>>>(); }
Instance lamb_float16_master() { return ratio_instance<Lamb, OneRow<TypeRow<WithMaster<Float16>, Float16>>>(); }
Instance lamb_any() { return ratio_instance<Lamb, AnyRow>(); }

}  // namespace bertadam::cuda
