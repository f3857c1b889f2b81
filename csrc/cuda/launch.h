// The CUDA backend as plain C++: no torch, no CUDA types. Functions return a cudaError_t value, 0 for success.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/rules.h"
#include "core/step_args.h"
#include "cuda/captured_memory.h"

namespace bertadam::cuda {

// What a device can hold at once, in a step of tensors of these types: a row's code (core/types.h), or any mixture.
constexpr uint32_t kAnyTypes = 0xffffffffu;
struct RingShape {
  int blocks;
  uint32_t n_slots;  // of each block
  uint32_t n_kept;   // of them, that hold on to what they have while others fill
};
int ring_shape(int device, RuleId rule, uint32_t types, RingShape* shape);

// The host's tables, as a launch finds them.
struct StepTables {
  const std::vector<GroupScalars>& groups;
  const std::vector<TensorRow>& rows;
  const std::vector<const void*>& grads;
};

// One per plan and stream. Holds what a launch must not allocate: tables on the device, and what goes before them.
class Launcher {
 public:
  explicit Launcher(int device);
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  // The tables and sizes in `args` are filled in here. `types` are of the same rule at every launch. `blocks`: 0 for as
  // many as are resident together.
  int launch(StepArgs args, const StepTables& tables, RuleId rule, uint32_t types, void* stream, int blocks);

  // How many tables the last launch copied to the device first.
  int n_copies() const { return n_copies_; }

 private:
  class StagedTable;

  int device_;
  uint32_t types_ = kAnyTypes;
  RingShape shape_{0, 0, 0};  // for `types_`; no blocks before the first launch
  int n_copies_ = 0;
  std::unique_ptr<StagedTable> rows_, step_table_;
};

bool is_capturing(void* stream);

// Loads the kernel that graphs of tensors of these types take: who captures it can wait for no loading.
int prepare_capture(int device, RuleId rule, uint32_t types);

// A launch into the graph that `stream` captures: one node. What the graph needs beside the caller's tensors is added
// to `memory`; the scratch that `args` names is used by nobody else.
struct StepKind {
  RuleId rule;
  uint32_t types;
};
int capture(StepArgs args, const StepTables& tables, const StepKind& kind, void* stream, CapturedMemory& memory);

const char* error_string(int error);

struct DeviceInfo {
  int major, minor, multiprocessors;
  std::string name;
};
struct RuntimeInfo {
  int runtime_version, driver_version;
  int error;  // of counting the devices
  std::vector<DeviceInfo> devices;
};
RuntimeInfo runtime_info();

}  // namespace bertadam::cuda
