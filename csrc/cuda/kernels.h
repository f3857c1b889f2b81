// The kernels that kernel_launch.cuh chooses from; each file under instances/ compiles some of them.
#pragma once

#include <cstdint>

namespace bertadam::cuda {

struct SmallArgs;
struct LargeArgs;

template <class Args>
using Kernel = void (*)(Args);

// For some types of parameters, masters and gradients.
struct Instance {
  // The same, with room for a small or a large table in the arguments.
  Kernel<SmallArgs> small;
  Kernel<LargeArgs> large;
  uint32_t grad_bytes;  // room in the ring for an element
};

Instance adam_float32();
Instance adam_bfloat16();  // parameters and gradients, without masters
Instance adam_bfloat16_master();
Instance adam_bfloat16_remainder();
Instance adam_float16();
Instance adam_float16_master();
// Any types in any mixture: a warp asks each tensor for its own.
Instance adam_any();

Instance amsgrad_any();

Instance lamb_float32();
Instance lamb_bfloat16_master();
Instance lamb_float16_master();
Instance lamb_any();

Instance lars_float32();
Instance lars_any();

}  // namespace bertadam::cuda
