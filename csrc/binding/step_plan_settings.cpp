// The settings of a plan, as its groups of the host's table have them.
#include "binding/step_plan.h"

namespace bertadam::binding {

void StepPlan::set_group(size_t index, const GroupSettings& s, at::Tensor multipliers,
                         std::optional<at::Tensor> corrections) {
  TORCH_CHECK(index < n_groups_, "group index out of range");
  for (const at::Tensor* table : {&multipliers, corrections ? &*corrections : &multipliers}) {
    TORCH_CHECK(table->device() == device_ && table->scalar_type() == at::kDouble && table->is_contiguous() &&
                    table->numel() > 0,
                "schedule tables are contiguous float64 tensors on the plan's device");
  }
  GroupScalars& group = execution->groups()[index];
  group = scalars_of(s);
  group.multipliers = multipliers.const_data_ptr<double>();
  group.n_multipliers = multipliers.numel();
  if (corrections) {
    group.corrections = static_cast<const BiasCorrection*>(corrections->const_data_ptr());
    group.n_corrections = corrections->numel() / 2;
  }
  group_tables_[2 * index] = std::move(multipliers);
  group_tables_[2 * index + 1] = corrections ? *corrections : at::Tensor();
}

void StepPlan::set_lr(size_t index, double lr) {
  TORCH_CHECK(index < n_groups_, "group index out of range");
  execution->groups()[index].lr = lr;
}

void StepPlan::set_lr(size_t index, double lr, const std::optional<at::Tensor>& on_device) {
  set_lr(index, lr);
  GroupScalars& group = execution->groups()[index];
  group.lr_float32 = nullptr;
  group.lr_float64 = nullptr;
  group_lrs_[index] = at::Tensor();
  // The tensor is on its group's device: on another one the group has no parameters.
  if (!on_device || on_device->device() != device_) return;
  TORCH_CHECK(on_device->numel() == 1 && !on_device->is_neg(), where_, ": lr is no single number in memory");
  group_lrs_[index] = *on_device;
  if (on_device->scalar_type() == at::kFloat) {
    group.lr_float32 = on_device->const_data_ptr<float>();
  } else {
    group.lr_float64 = on_device->const_data_ptr<double>();
  }
}

void StepPlan::configure(ExecutionSettings settings) {
  execution->configure(std::move(settings));
  counters_changed_ = false;
}

}  // namespace bertadam::binding
