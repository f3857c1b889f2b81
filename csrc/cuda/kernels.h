// The kernel instances that launch.cu can choose from; each is compiled in its own file under instances/.
#pragma once

namespace bertadam::cuda {

struct KernelArgs;

using Kernel = void (*)(KernelArgs);

// A step with norms, and one without.
Kernel adam_float32_kernel();
Kernel adam_float32_update_kernel();

}  // namespace bertadam::cuda
