// The CUDA backend as plain C++: no torch, no CUDA types. Functions return a cudaError_t value, 0 for success.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/step_args.h"

namespace bertadam::cuda {

// One per plan and stream. Holds what a launch must not allocate: the staging buffers of a table that is too long
// for the kernel's arguments, and what the device can hold at once.
class Launcher {
 public:
  explicit Launcher(int device);
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  // `table`: n_groups GroupScalars, then n_tensors TensorRows; `args.groups` and `args.rows` are ignored.
  // `blocks`: 0 for as many as are resident together.
  int launch_adam_float32(const StepArgs& args, const std::vector<unsigned char>& table, void* stream, int blocks);

  // Whether the last launch copied its table to the device first.
  bool staged() const { return staged_; }

 private:
  int stage(const std::vector<unsigned char>& table, void* stream, const unsigned char** on_device);

  struct Buffer;
  int device_;
  int resident_blocks_ = 0;
  bool staged_ = false;
  int next_buffer_ = 0;
  Buffer* buffers_[2] = {nullptr, nullptr};
};

// Blocks per device that lookahead is planned for.
int resident_blocks(int device, int* blocks);

bool is_capturing(void* stream);

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
