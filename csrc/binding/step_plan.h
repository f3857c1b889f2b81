// One device's part of an optimizer: reads the optimizer's own parameter lists, gradients and state dicts at every
// step, checks them, and runs the step. It remembers nothing of a tensor that it does not compare at the next step.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "binding/checks.h"
#include "core/plan.h"
#include "core/step_args.h"
#include "cpu/worker.h"
#if defined(BERTADAM_WITH_CUDA)
#include "cuda/launch.h"
#include "cuda/tuning.h"
#endif

namespace bertadam::binding {

struct PlanSettings {
  bool clip_by_total_norm = false;
  bool skip_nonfinite = false;
  std::vector<bool> group_needs_norm;

  bool operator==(const PlanSettings& other) const {
    return clip_by_total_norm == other.clip_by_total_norm && skip_nonfinite == other.skip_nonfinite &&
           group_needs_norm == other.group_needs_norm;
  }
};

struct GroupSettings {
  double lr, beta1, beta2, eps, weight_decay, max_grad_norm;
  bool maximize;
};

class StepPlan {
 public:
  // `n_skipped`: 0-dim int64 on the device, counted up by the steps.
  StepPlan(std::string where, pybind11::list param_groups, pybind11::dict state, at::Device device,
           at::Tensor n_skipped);

  void set_group(size_t index, const GroupSettings& settings, at::Tensor multipliers,
                 std::optional<at::Tensor> corrections);
  void set_lr(size_t index, double lr);
  void configure(PlanSettings settings);

  // The parts of a step, to be called in this order; the first two write nothing of the user's but missing states.
  // `inspect` is false where the parameters are no longer those that the plan was made for. `init_state(param)`
  // creates the zero state of a parameter; the plan does not keep it, since it refers to the optimizer.
  // `prepare` is true where somebody else has written a step counter since the last step.
  bool inspect(const pybind11::list& param_groups, const pybind11::dict& state);
  bool prepare(const pybind11::function& init_state);
  void run();

  std::optional<at::Tensor> grad_norms() const;
  std::optional<at::Tensor> total_norm() const;
  at::Tensor clip_coefficients() const { return clip_coefficients_; }
  at::Device device() const { return device_; }
  const Plan& work() const { return plan_; }
  bool staged() const;

  // For tests: the number of blocks or CPU workers, 0 for the choice of the backend; how many threads the last step
  // on the CPU ran on; the scratch of every stream.
  int workers = 0;
  size_t n_threads = 0;
  std::vector<at::Tensor> scratch() const;

 private:
  struct Entry {
    pybind11::object object;
    at::Tensor param;
    std::vector<int64_t> sizes, strides;
    uint32_t group;
    pybind11::dict state;  // of this parameter; empty until it is found
    const at::Tensor* grad;
    std::vector<at::Tensor> written;  // states and counter of this step, to bump their versions
    const void* step;                 // the counter of the last step and the version it was left with
    uint32_t step_version;
  };
  struct Scratch {
    at::Tensor memory;
    Workspace workspace;
#if defined(BERTADAM_WITH_CUDA)
    std::unique_ptr<cuda::Launcher> launcher;
#endif
  };

  bool same_structure(const pybind11::list& param_groups) const;
  void find_state(Entry& entry, const std::string& name);
  void read_state(Entry& entry, size_t index, TensorRow& row);
  void check_overlaps();
  void make_work(bool null_step);
  Scratch& scratch_of(void* stream);
  Scratch make_scratch() const;
  StepArgs step_args(const Workspace& workspace) const;
  void run_on_cpu();
  void run_on_cuda();

  GroupScalars* groups() { return reinterpret_cast<GroupScalars*>(table_.data()); }
  TensorRow* rows() { return reinterpret_cast<TensorRow*>(table_.data() + n_groups_ * sizeof(GroupScalars)); }

  const std::string where_;
  const at::Device device_;
  pybind11::dict state_;
  Py_ssize_t n_states_ = -1;                  // entries of `state_` when the parameters' dicts were last looked up
  std::vector<pybind11::object> all_params_;  // of every device, in param_groups order
  std::vector<Py_ssize_t> group_sizes_;
  size_t n_groups_;
  std::vector<Entry> entries_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> converted_grads_;    // of this step: gradients brought into their parameter's layout
  std::vector<const void*> written_pointers_;  // at the last overlap check

  PlanSettings settings_;
  bool null_step_ = false;  // every learning rate is 0: the step counts only if some gradient is not
  bool work_is_current_ = false;
  bool counters_changed_ = false;
  Plan plan_;
  at::Tensor items_, tensors_;        // the plan on the device
  std::vector<unsigned char> table_;  // groups, then rows
  std::vector<at::Tensor> group_tables_;
  std::map<void*, Scratch> scratch_;
  at::Tensor norms_, total_norm_, clip_coefficients_, n_skipped_;
};

void set_cpu_isa(const std::string& name);
std::vector<std::string> cpu_isas();

}  // namespace bertadam::binding
