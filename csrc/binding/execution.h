// Owns what a step needs beside the user's tensors - the work list, the scratch memory of every stream, the table of
// groups and rows, the statistics - and runs the step on its device. Knows nothing of Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "binding/captured_steps.h"
#include "binding/device_scaling.h"
#include "binding/work_list.h"
#include "core/plan.h"
#include "core/step_args.h"

namespace bertadam::binding {

struct ExecutionSettings {
  bool clip_by_total_norm = false;
  bool skip_nonfinite = false;
  std::vector<bool> group_needs_norm;

  bool operator==(const ExecutionSettings& other) const {
    return clip_by_total_norm == other.clip_by_total_norm && skip_nonfinite == other.skip_nonfinite &&
           group_needs_norm == other.group_needs_norm;
  }
};

class Execution {
 public:
  // One size and group per tensor. `n_skipped`: 0-dim int64 on the device, counted up by the steps.
  Execution(std::string where, RuleId rule, at::Device device, std::vector<int64_t> n_elements,
            std::vector<uint32_t> group, size_t n_groups, at::Tensor n_skipped);

  void configure(ExecutionSettings settings);

  uint64_t rounding_seed = 0;
  DeviceScaling scaling;                    // of the next step
  std::shared_ptr<CapturedSteps> captured;  // null: captures are refused

  // Filled by the caller: groups when their settings change, rows and gradients at every step.
  GroupScalars* groups() { return groups_.data(); }
  TensorRow* rows() { return rows_.data(); }
  const void** grads() { return grads_.data(); }

  // The work of the next step. Makes a list where the last one does not fit. False where the stream captures and the
  // step would have to do more than launch.
  bool prepare();
  // Of the step that was prepared.
  bool is_captured() const { return is_captured_; }
  void run();

  std::optional<at::Tensor> grad_norms() const;
  std::optional<at::Tensor> total_norm() const;
  at::Tensor clip_coefficients() const { return clip_coefficients_; }
  std::optional<at::Tensor> trust_ratios() const;
  at::Device device() const { return device_; }

  // For tests: the number of CPU workers, or of blocks where norms are taken, 0 for the backend's choice; of how many
  // draws gradients are kept on chip, -1 for the backend's choice; how many threads the last step on the CPU ran on;
  // how many tables the last launch copied first; the scratch of every stream.
  int workers = 0;
  void set_retained_draws(int64_t n);
  int64_t retained_draws() const { return retained_draws_; }
  size_t n_threads = 0;
  int n_copies() const;
  std::vector<at::Tensor> scratch() const;
  ScratchLayout scratch_layout() const { return list_ == nullptr ? ScratchLayout{} : list_->scratch_layout(); }

 private:
  void see_types();
#if defined(BERTADAM_WITH_CUDA)
  uint32_t types() const;  // as the launcher wants them
#endif
  bool is_ready_to_capture() const;
  bool waits_for_all() const;
  void choose_list();
  std::unique_ptr<WorkList> make_list(bool wait_for_all) const;
  bool any_norm() const;
  PlanOptions plan_options(bool wait_for_all) const;
  StepArgs step_args(const Workspace& workspace) const;
  void run_on_cpu();
  void run_on_cuda();
  void capture();

  const std::string where_;
  const RuleId rule_;
  const at::Device device_;
  const std::vector<int64_t> n_elements_;
  const std::vector<uint32_t> group_;
  const size_t n_groups_;
  ExecutionSettings settings_;
  bool is_captured_ = false;
  bool null_step_ = false;   // every learning rate is 0: the step counts only if some gradient is not
  uint32_t seen_types_ = 0;  // a bit for each code of a row that any step had, so that absent gradients change nothing
  bool lists_fit_ = false;   // with their settings
  int64_t retained_draws_ = -1;
  std::array<std::unique_ptr<WorkList>, 2> lists_;  // without and with waiting for all norms: steps may alternate
  WorkList* list_ = nullptr;                        // of the last step that was prepared
  std::vector<GroupScalars> groups_;
  std::vector<TensorRow> rows_;
  std::vector<const void*> grads_;  // null: none
  at::Tensor norms_, total_norm_, clip_coefficients_, trust_ratios_, n_skipped_;
};

// Whether a CUDA graph captures the device's current stream.
bool is_capturing(at::Device device);

// The instruction set of the CPU backend: the best that the machine has, unless chosen otherwise.
void set_cpu_isa(const std::string& name);
std::vector<std::string> cpu_isas();

}  // namespace bertadam::binding
