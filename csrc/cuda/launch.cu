// Launches kernels on the stream and device it is given, after bringing the tables to the device that changed or are
// too long for the arguments.
#include "cuda/launch.h"

#include <algorithm>
#include <cstring>

#include "cuda/engine.cuh"
#include "cuda/kernels.h"
#include "cuda/runtime.cuh"

namespace bertadam::cuda {

namespace {

Instance adam(uint32_t types) {
  switch (types) {
    case types_code(StorageKind::kFloat32, DType::kFloat32):
      return adam_float32();
    case types_code(StorageKind::kBFloat16, DType::kBFloat16):
      return adam_bfloat16();
    case types_code(StorageKind::kBFloat16Master, DType::kBFloat16):
      return adam_bfloat16_master();
    case types_code(StorageKind::kBFloat16Remainder, DType::kBFloat16):
      return adam_bfloat16_remainder();
    case types_code(StorageKind::kFloat16, DType::kFloat16):
      return adam_float16();
    case types_code(StorageKind::kFloat16Master, DType::kFloat16):
      return adam_float16_master();
    default:
      return adam_any();
  }
}

Instance lamb(uint32_t types) {
  return types == types_code(StorageKind::kFloat32, DType::kFloat32) ? lamb_float32() : lamb_any();
}

Instance instance_of(RuleId rule, uint32_t types) {
  switch (rule) {
    case RuleId::kAdam:
      return adam(types);
    case RuleId::kAmsgrad:
      return amsgrad_any();
    case RuleId::kLamb:
      return lamb(types);
    case RuleId::kLars:
      break;
  }
  return lars_any();
}

size_t ring_bytes(const Instance& instance, const RingShape& shape) {
  return shape.n_slots * RingMemory::slot_bytes(instance.grad_bytes);
}

// Allows `step`, a kernel of the rule's instance, as much shared memory as the ring takes.
int find_ring_shape(int device, RuleId rule, const Instance& instance, const void* step, RingShape* shape) {
  int multiprocessors = 0;
  int shared_bytes = 0;
  BERTADAM_RETURN_IF_ERROR(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  BERTADAM_RETURN_IF_ERROR(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  cudaFuncAttributes attributes;
  BERTADAM_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, step));
  const size_t available = static_cast<size_t>(shared_bytes) - attributes.sharedSizeBytes;
  const auto n_slots = static_cast<uint32_t>(available / RingMemory::slot_bytes(instance.grad_bytes));
  const uint32_t passing = rule_info(rule).has_trust_ratio ? kSlotsInSurvey : kSlotsInPassage;
  *shape = {multiprocessors, n_slots, n_slots > passing ? n_slots - passing : 1};
  if (n_slots < kNormWarps) return static_cast<int>(cudaErrorInvalidConfiguration);  // each has one
  BERTADAM_RETURN_IF_ERROR(cudaFuncSetAttribute(step, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(ring_bytes(instance, *shape))));
  return 0;
}

// Groups first, then gradients.
struct StepTable {
  explicit StepTable(const StepTables& tables)
      : tables(tables),
        groups_size(tables.groups.size() * sizeof(GroupScalars)),
        size(groups_size + tables.grads.size() * sizeof(void*)) {}

  void write(unsigned char* to) const {
    std::memcpy(to, tables.groups.data(), groups_size);
    std::memcpy(to + groups_size, tables.grads.data(), size - groups_size);
  }
  void point(StepArgs& args, const unsigned char* on_device) const {
    args.groups = reinterpret_cast<const GroupScalars*>(on_device);
    args.grads = reinterpret_cast<const void* const*>(on_device + groups_size);
  }

  const StepTables& tables;
  const size_t groups_size, size;
};

// The kernels of one step.
struct Kernels {
  const void* step;
  const void* update;  // where there are no norms; null: the same
  uint32_t update_threads;
};
Kernels eager_kernels(const Instance& instance) {
  return {reinterpret_cast<const void*>(instance.step), reinterpret_cast<const void*>(instance.update),
          instance.update_threads};
}
Kernels graph_kernels(const Instance& instance) {
  return {reinterpret_cast<const void*>(instance.graph_step), reinterpret_cast<const void*>(instance.graph_update),
          instance.update_threads};
}

// `args`: of the kernels. `n_blocks`: where there are norms.
template <class Args>
int launch_kernel(const Kernels& kernels, Args& args, uint32_t n_blocks, size_t shared_bytes, cudaStream_t stream) {
  void* parameters[] = {&args};
  if (!args.step.has_norms && kernels.update != nullptr) {
    BERTADAM_RETURN_IF_ERROR(
        cudaLaunchKernel(kernels.update, dim3(args.step.n_draws), dim3(kernels.update_threads), parameters, 0, stream));
    return 0;
  }
  BERTADAM_RETURN_IF_ERROR(
      cudaLaunchKernel(kernels.step, dim3(n_blocks), dim3(kThreads), parameters, shared_bytes, stream));
  return 0;
}

uint32_t blocks_of(const RingShape& shape, const StepArgs& args) {
  return std::min(static_cast<uint32_t>(shape.blocks), args.n_draws);
}

}  // namespace

// Memory on the device that follows a table of the host's. Two pairs of buffers, so that the host may fill one while
// the device still reads the other.
class Launcher::StagedTable {
 public:
  ~StagedTable() {
    for (Buffer& buffer : buffers_) {
      // Waits for the device; only reached when a plan is dropped or grows.
      if (buffer.device) cudaFree(buffer.device);
      if (buffer.host) cudaFreeHost(buffer.host);
      if (buffer.copied) cudaEventDestroy(buffer.copied);
    }
  }

  // The table on the device, if it was copied there before and is the same still.
  const unsigned char* find(const void* data, size_t size) const {
    const Buffer& last = buffers_[next_ ^ 1];
    return last.size == size && std::memcmp(last.host, data, size) == 0 ? last.device : nullptr;
  }

  // Room to write a table to, when the device has read what was there.
  int begin(size_t size, unsigned char** host) {
    Buffer& buffer = buffers_[next_];
    if (buffer.capacity < size) {
      const RelaxedCapture relaxed;  // another thread may be capturing
      if (buffer.device) cudaFree(buffer.device);
      if (buffer.host) cudaFreeHost(buffer.host);
      buffer.device = buffer.host = nullptr;
      buffer.capacity = 0;
      BERTADAM_RETURN_IF_ERROR(cudaMallocHost(&buffer.host, size));
      BERTADAM_RETURN_IF_ERROR(cudaMalloc(&buffer.device, size));
      if (!buffer.copied) BERTADAM_RETURN_IF_ERROR(cudaEventCreateWithFlags(&buffer.copied, cudaEventDisableTiming));
      buffer.capacity = size;
    } else {
      // Of the copy before the last: long past unless the host runs two steps ahead of the device.
      BERTADAM_RETURN_IF_ERROR(cudaEventSynchronize(buffer.copied));
    }
    buffer.size = size;
    *host = buffer.host;
    return 0;
  }

  int copy(cudaStream_t stream, const unsigned char** on_device) {
    Buffer& buffer = buffers_[next_];
    next_ ^= 1;
    BERTADAM_RETURN_IF_ERROR(cudaMemcpyAsync(buffer.device, buffer.host, buffer.size, cudaMemcpyHostToDevice, stream));
    BERTADAM_RETURN_IF_ERROR(cudaEventRecord(buffer.copied, stream));
    *on_device = buffer.device;
    return 0;
  }

 private:
  struct Buffer {
    size_t capacity = 0, size = 0;
    unsigned char* host = nullptr;
    unsigned char* device = nullptr;
    cudaEvent_t copied = nullptr;
  };
  Buffer buffers_[2];
  int next_ = 0;
};

Launcher::Launcher(int device)
    : device_(device), rows_(std::make_unique<StagedTable>()), step_table_(std::make_unique<StagedTable>()) {}

Launcher::~Launcher() {
  const DeviceScope scope(device_);
  const RelaxedCapture relaxed;  // the garbage collector may call during a capture
  rows_.reset();
  step_table_.reset();
}

int Launcher::launch(StepArgs args, const StepTables& tables, RuleId rule, uint32_t types, void* stream, int blocks) {
  const DeviceScope scope(device_);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  const Instance instance = instance_of(rule, types);
  if (shape_.blocks == 0 || types != types_) {
    if (const int error = find_ring_shape(device_, rule, instance, eager_kernels(instance).step, &shape_)) return error;
    types_ = types;
  }
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  n_copies_ = 0;

  const size_t rows_size = tables.rows.size() * sizeof(TensorRow);
  const unsigned char* rows = rows_->find(tables.rows.data(), rows_size);
  if (rows == nullptr) {
    unsigned char* host = nullptr;
    if (const int error = rows_->begin(rows_size, &host)) return error;
    std::memcpy(host, tables.rows.data(), rows_size);
    if (const int error = rows_->copy(cuda_stream, &rows)) return error;
    ++n_copies_;
  }
  args.rows = reinterpret_cast<const TensorRow*>(rows);

  KernelArgs kernel_args;
  const StepTable step_table(tables);
  args.groups = nullptr;
  args.grads = nullptr;
  if (step_table.size <= sizeof(kernel_args.table)) {
    step_table.write(kernel_args.table);
  } else {
    unsigned char* host = nullptr;
    const unsigned char* on_device = nullptr;
    if (const int error = step_table_->begin(step_table.size, &host)) return error;
    step_table.write(host);
    if (const int error = step_table_->copy(cuda_stream, &on_device)) return error;
    step_table.point(args, on_device);
    ++n_copies_;
  }

  kernel_args.step = args;
  kernel_args.n_slots = shape_.n_slots;
  const uint32_t n_blocks = blocks > 0 ? static_cast<uint32_t>(blocks) : blocks_of(shape_, args);
  return launch_kernel(eager_kernels(instance), kernel_args, n_blocks, ring_bytes(instance, shape_), cuda_stream);
}

int prepare_capture(int device, RuleId rule, uint32_t types) {
  const DeviceScope scope(device);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  const Instance instance = instance_of(rule, types);
  const Kernels kernels = graph_kernels(instance);
  cudaFuncAttributes attributes;
  if (kernels.update != nullptr) BERTADAM_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, kernels.update));
  RingShape shape;
  return find_ring_shape(device, rule, instance, kernels.step, &shape);
}

int capture(const StepArgs& args, const StepTables& tables, RuleId rule, uint32_t types, void* stream,
            CapturedMemory& memory) {
  const DeviceScope scope(memory.device());
  BERTADAM_RETURN_IF_ERROR(scope.error());
  const Instance instance = instance_of(rule, types);
  const Kernels kernels = graph_kernels(instance);
  RingShape shape;
  if (const int error = find_ring_shape(memory.device(), rule, instance, kernels.step, &shape)) return error;

  GraphArgs graph_args{args, shape.n_slots};
  const unsigned char* on_device = nullptr;
  const size_t rows_size = tables.rows.size() * sizeof(TensorRow);
  if (const int error = memory.add_copy(tables.rows.data(), rows_size, &on_device)) return error;
  graph_args.step.rows = reinterpret_cast<const TensorRow*>(on_device);
  const StepTable step_table(tables);
  std::vector<unsigned char> on_host(step_table.size);
  step_table.write(on_host.data());
  if (const int error = memory.add_copy(on_host.data(), on_host.size(), &on_device)) return error;
  step_table.point(graph_args.step, on_device);
  return launch_kernel(kernels, graph_args, blocks_of(shape, args), ring_bytes(instance, shape),
                       static_cast<cudaStream_t>(stream));
}

int ring_shape(int device, RuleId rule, uint32_t types, RingShape* shape) {
  const DeviceScope scope(device);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  const Instance instance = instance_of(rule, types);
  return find_ring_shape(device, rule, instance, eager_kernels(instance).step, shape);
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) != cudaSuccess) cudaGetLastError();
  return status == cudaStreamCaptureStatusActive;
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

RuntimeInfo runtime_info() {
  RuntimeInfo info{0, 0, 0, {}};
  cudaRuntimeGetVersion(&info.runtime_version);
  cudaDriverGetVersion(&info.driver_version);
  int n_devices = 0;
  info.error = take(cudaGetDeviceCount(&n_devices));
  if (info.error != 0) return info;
  for (int i = 0; i < n_devices; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
      cudaGetLastError();
      continue;
    }
    info.devices.push_back({properties.major, properties.minor, properties.multiProcessorCount, properties.name});
  }
  return info;
}

}  // namespace bertadam::cuda
