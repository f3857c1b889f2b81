#include "core/rules/lars.h"
#include "cuda/ratio_engine.cuh"

namespace bertadam::cuda {

Instance lars_float32() { return ratio_instance<Lars, OneRow<Float32Row>>(); }
Instance lars_any() { return ratio_instance<Lars, AnyRow>(); }

}  // namespace bertadam::cuda
