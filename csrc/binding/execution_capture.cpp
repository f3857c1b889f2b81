// Steps that a CUDA graph captures: they do nothing but launch, with memory of their own.
#include <c10/core/impl/VirtualGuardImpl.h>

#include "binding/execution.h"
#if defined(BERTADAM_WITH_CUDA)
#include "cuda/captured_memory.h"
#endif

namespace bertadam::binding {

bool is_capturing(at::Device device) {
#if defined(BERTADAM_WITH_CUDA)
  if (device.is_cuda()) {
    const c10::Stream stream = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(device);
    return cuda::is_capturing(stream.native_handle());
  }
#endif
  return false;
}

// A list is made by copies, a learning rate of the host's would stay what it is now, and whether kernels and lists are
// right for tensors of these types is known once a step was made.
bool Execution::is_ready_to_capture() const {
  if (!captured || !lists_fit_ || !lists_[waits_for_all()]) return false;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (grads_[i] != nullptr && (seen_types_ >> rows_[i].types & 1u) == 0) return false;
  }
  for (const uint32_t group : group_) {
    if (!groups_[group].has_lr_on_device()) return false;
  }
  return true;
}

void Execution::capture() {
#if defined(BERTADAM_WITH_CUDA)
  const c10::Stream stream = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(device_);
  const auto memory = std::make_shared<cuda::CapturedMemory>(device_.index());
  captured->keep(memory);
  captured->keep(list_->memory());
  captured->keep({norms_, total_norm_, clip_coefficients_, trust_ratios_, n_skipped_});
  captured->keep({scaling.grad_scale, scaling.found_inf});
  unsigned char* scratch = nullptr;
  int error = memory->add_zeros(list_->scratch_layout().end, &scratch);
  if (error == 0) {
    error = cuda::capture(step_args(list_->workspace_at(scratch)), {groups_, rows_, grads_}, {rule_, types()},
                          stream.native_handle(), *memory);
  }
  TORCH_CHECK(error == 0, where_, ": the step could not be captured on ", device_, ": ", cuda::error_string(error));
#endif
}

}  // namespace bertadam::binding
