// One device's part of an optimizer: reads the optimizer's own parameter lists, gradients and state dicts at every
// step, checks them, and hands their memory to the execution. It remembers nothing of a tensor that it does not compare
// at the next step.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "binding/checks.h"
#include "binding/execution.h"

namespace bertadam::binding {

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

  // The parts of a step, to be called in this order; the first two write nothing of the user's but missing states.
  // `inspect` is false where the parameters are no longer those that the plan was made for. `init_state(param)`
  // creates the zero state of a parameter; the plan does not keep it, since it refers to the optimizer.
  // `prepare` is true where somebody else has written a step counter since the last step.
  bool inspect(const pybind11::list& param_groups, const pybind11::dict& state);
  bool prepare(const pybind11::function& init_state);
  void run();

  std::unique_ptr<Execution> execution;

 private:
  struct Entry {
    pybind11::object object;
    at::Tensor param;
    std::vector<int64_t> sizes, strides;
    uint32_t group;
    pybind11::dict state;              // of this parameter; empty until it is found
    const at::Tensor* grad = nullptr;  // of this step
    Seen seen_param, seen_states[kMaxStates], seen_step;
    uint32_t step_version = 0;  // that the last step left the counter with
  };
  // The values of a parameter's state dict, borrowed.
  struct StateValues {
    PyObject* states[kMaxStates] = {};
    PyObject* step = nullptr;
    PyObject* schedule_start = nullptr;
    PyObject* bias_correction_start = nullptr;
  };

  bool same_structure(const pybind11::list& param_groups) const;
  void find_state(Entry& entry, const std::string& name);
  static StateValues values_of(const pybind11::dict& state);
  const at::Tensor& as_tensor(PyObject* value, const char* key, size_t index) const;
  void read_state(Entry& entry, size_t index, TensorRow& row);
  void will_write(const at::Tensor& tensor);
  void check_overlaps();

  const std::string where_;
  const at::Device device_;
  pybind11::dict state_;
  Py_ssize_t n_states_ = -1;                  // entries of `state_` when the parameters' dicts were last looked up
  std::vector<pybind11::object> all_params_;  // of every device, in param_groups order
  std::vector<Py_ssize_t> group_sizes_;
  const size_t n_groups_;
  std::vector<Entry> entries_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> group_tables_;       // keeps alive what the groups point to
  std::vector<at::Tensor> converted_grads_;    // of this step: gradients brought into their parameter's layout
  std::vector<c10::TensorImpl*> written_;      // by this step
  std::vector<at::Tensor> alive_;              // while a step on the CPU runs without the GIL
  std::vector<const void*> written_pointers_;  // at the last overlap check
  bool counters_changed_ = false;
};

}  // namespace bertadam::binding
