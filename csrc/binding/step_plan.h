// One device's part of an optimizer: reads the optimizer's own parameters, gradients and state dicts at every step,
// checks them, and hands their memory to the execution. What it remembers of a step is compared at the next one.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "binding/checks.h"
#include "binding/dict_watch.h"
#include "binding/execution.h"
#include "binding/group_settings.h"
#include "binding/ordinary.h"
#include "binding/param_storage.h"
#include "binding/scaling.h"
#include "binding/state_values.h"

namespace bertadam::binding {

class StepPlan {
 public:
  // `n_skipped`: 0-dim int64 on the device, counted up by the steps.
  StepPlan(std::string where, RuleId rule, pybind11::list param_groups, pybind11::dict state, at::Device device,
           at::Tensor n_skipped, StorageSettings storage);

  // Settings, of which `configure` comes last: it ends counters_changed().
  void set_group(size_t index, const GroupSettings& settings, at::Tensor multipliers,
                 std::optional<at::Tensor> corrections);
  // `on_device`: where the step reads the learning rate instead, one float32 or float64 on a CUDA device.
  void set_lr(size_t index, double lr, const std::optional<at::Tensor>& on_device);
  // Of the host's alone.
  void set_lr(size_t index, double lr);
  void configure(ExecutionSettings settings);

  bool same_structure(const pybind11::list& param_groups) const;
  // Reads and checks all that a step uses, and writes none of it. False where the parameters are no longer those that
  // the plan was made for.
  bool read(const pybind11::dict& state);
  // Whether a step can follow: every state is there, and the settings have seen the step counters.
  bool ready() const { return missing_.empty() && !counters_changed_; }
  // Whether somebody else has written a step counter, or brought one, since the settings were given.
  bool counters_changed() const { return counters_changed_; }
  // Has `init_state(param)` create what is missing. The plan does not keep it: it refers to the optimizer.
  void create_states(const pybind11::function& init_state);

  // A step, with nothing between `read` and these two. `scaling`: null without a scaler. False as the execution says.
  bool prepare(const Scaling* scaling);
  void run();

  void traverse(Visit& visit) const {
    visit(state_);
    states_.traverse(visit);
    for (const pybind11::object& param : all_params_) visit(param);
    for (const Entry& entry : entries_) visit(entry.step);
  }

  std::unique_ptr<Execution> execution;

 private:
  struct Entry {
    PyObject* param;   // `all_params_` holds it; its tensor may change
    uint32_t ordinal;  // there
    Layout layout;
    ParamStorage storage;
    ElementType grad;  // of the last step's gradient, and what both make of the row
    uint32_t types;
    Found found = Found::kNothing;  // in the state dict
    StateValues values;             // valid while nobody writes the dicts
    PyObject* master = nullptr;     // among them, of the kind that is wanted
    pybind11::object step;          // held, so that another counter cannot have its address
    const c10::TensorImpl* step_impl = nullptr;
    uint32_t step_version = 0;  // that the last step left the counter with
  };

  // What a step writes of an entry: the versions of parameter, step and states, and of the master.
  struct Written {
    Entry* entry;
    std::atomic<uint32_t>* versions[2 + kMaxStates];  // 2 + n_states_ of them
    std::atomic<uint32_t>* master_version;            // null: no master
  };

  void find_states();
  bool read_entries();
  bool read_entry(Entry& entry, const Ordinary& ordinary, TensorRow& row, const void*& grad, Written& written);
  void read_state(Entry& entry, const Ordinary& ordinary, TensorRow& row, Written& written);
  void read_master(const Entry& entry, const Ordinary& ordinary, TensorRow& row, Written& written);
  template <class Pointer>
  void point(Pointer& of_row, Pointer memory);
  const float* read_start(const Entry& entry, const Ordinary& ordinary, PyObject* value, const char* key) const;
  static bool knows_counter(const Entry& entry);

  // For what is not ordinary.
  size_t index_of(const Entry& entry) const { return static_cast<size_t>(&entry - entries_.data()); }
  const std::string& name_of(const Entry& entry) const { return names_[index_of(entry)]; }
  C10_NOINLINE bool checked_param(const Entry& entry, void*& memory) const;
  C10_NOINLINE void look_closer(const Entry& entry, const at::Tensor* grad);
  C10_NOINLINE const void* checked_grad(const at::Tensor& grad, Entry& entry);
  C10_NOINLINE void* checked_state(const Entry& entry, int k) const;
  C10_NOINLINE void* checked_master(const Entry& entry) const;
  C10_NOINLINE float* checked_counter(const Entry& entry, PyObject* value, const char* key) const;
  C10_NOINLINE static void remember_counter(Entry& entry);
  void keep_memory(const Entry& entry);
  void keep_captured() const;
  void check_overlaps();

  const std::string where_;
  const RuleId rule_;
  const int n_states_;
  const at::Device device_;
  const StorageSettings storage_;
  const Ordinary ordinary_;
  pybind11::dict state_;
  DictWatch states_{DictKind::kStates};       // `state_` and the dicts in it
  std::vector<pybind11::object> all_params_;  // of every device, in param_groups order
  std::vector<size_t> group_sizes_;
  const size_t n_groups_;
  std::vector<Entry> entries_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> group_tables_;  // keeps alive what the groups point to: two tables of each,
  std::vector<at::Tensor> group_lrs_;     // and a learning rate
  // Of this step; vectors stay to keep their memory.
  std::vector<size_t> missing_;              // entries without a state
  std::vector<Written> written_;             // of the entries with a gradient,
  size_t n_stepped_ = 0;                     // as many
  std::vector<at::Tensor> converted_grads_;  // gradients brought into their parameter's layout
  std::vector<c10::Storage> kept_;           // while a step on the CPU runs without the GIL
  bool counters_changed_ = false;
  bool memory_moved_ = true;  // since the last overlap check
};

}  // namespace bertadam::binding
