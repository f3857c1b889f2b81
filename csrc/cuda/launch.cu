// Launches kernels on the stream and device it is given, after bringing the tables to the device that changed or are
// too long for the arguments.
#include "cuda/launch.h"

#include <algorithm>
#include <cstring>

#include "cuda/engine.cuh"
#include "cuda/kernels.h"

namespace bertadam::cuda {

#define BERTADAM_RETURN_IF_ERROR(call)              \
  do {                                              \
    const cudaError_t error_ = (call);              \
    if (error_ != cudaSuccess) return take(error_); \
  } while (false)

namespace {

// The runtime remembers a failure until it is read; the caller gets it, nobody else should.
int take(cudaError_t error) {
  cudaGetLastError();
  return static_cast<int>(error);
}

// The statically linked runtime has a current device of its own.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess && previous_ != device) {
      error_ = cudaSetDevice(device);
      restore_ = error_ == cudaSuccess;
    }
  }
  ~DeviceScope() {
    if (restore_) cudaSetDevice(previous_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_;
  int previous_ = 0;
  bool restore_ = false;
};

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
    case RuleId::kLamb:
      return lamb(types);
    case RuleId::kLars:
      return lars_any();
    default:
      return adam(types);
  }
}

size_t ring_bytes(const Instance& instance, const RingShape& shape) {
  return shape.n_slots * RingMemory::slot_bytes(instance.grad_bytes);
}

int find_ring_shape(int device, RuleId rule, uint32_t types, RingShape* shape) {
  const Instance instance = instance_of(rule, types);
  int multiprocessors = 0;
  int shared_bytes = 0;
  BERTADAM_RETURN_IF_ERROR(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  BERTADAM_RETURN_IF_ERROR(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const auto* const kernel = reinterpret_cast<const void*>(instance.step);
  cudaFuncAttributes attributes;
  BERTADAM_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, kernel));
  const size_t available = static_cast<size_t>(shared_bytes) - attributes.sharedSizeBytes;
  const auto n_slots = static_cast<uint32_t>(available / RingMemory::slot_bytes(instance.grad_bytes));
  const uint32_t passing = rule_info(rule).has_trust_ratio ? kSlotsInSurvey : kSlotsInPassage;
  *shape = {multiprocessors, n_slots, n_slots > passing ? n_slots - passing : 1};
  if (n_slots < kNormWarps) return static_cast<int>(cudaErrorInvalidConfiguration);  // each has one
  BERTADAM_RETURN_IF_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(ring_bytes(instance, *shape))));
  return 0;
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
  rows_.reset();
  step_table_.reset();
}

int Launcher::launch(StepArgs args, const StepTables& tables, RuleId rule, uint32_t types, void* stream, int blocks) {
  const DeviceScope scope(device_);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  const Instance instance = instance_of(rule, types);
  if (shape_.blocks == 0 || types != types_) {
    if (const int error = find_ring_shape(device_, rule, types, &shape_)) return error;
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
  const size_t groups_size = tables.groups.size() * sizeof(GroupScalars);
  const size_t grads_size = tables.grads.size() * sizeof(void*);
  unsigned char* table = kernel_args.table;
  const bool is_inline = groups_size + grads_size <= sizeof(kernel_args.table);
  if (!is_inline) {
    if (const int error = step_table_->begin(groups_size + grads_size, &table)) return error;
  }
  std::memcpy(table, tables.groups.data(), groups_size);
  std::memcpy(table + groups_size, tables.grads.data(), grads_size);
  args.groups = nullptr;
  args.grads = nullptr;
  if (!is_inline) {
    const unsigned char* on_device = nullptr;
    if (const int error = step_table_->copy(cuda_stream, &on_device)) return error;
    args.groups = reinterpret_cast<const GroupScalars*>(on_device);
    args.grads = reinterpret_cast<const void* const*>(on_device + groups_size);
    ++n_copies_;
  }

  kernel_args.step = args;
  kernel_args.n_slots = shape_.n_slots;
  void* parameters[] = {&kernel_args};
  if (!args.has_norms && instance.update != nullptr) {
    const auto* const kernel = reinterpret_cast<const void*>(instance.update);
    BERTADAM_RETURN_IF_ERROR(
        cudaLaunchKernel(kernel, dim3(args.n_draws), dim3(kPlainThreads), parameters, 0, cuda_stream));
    return 0;
  }
  const uint32_t n_blocks =
      blocks > 0 ? static_cast<uint32_t>(blocks) : std::min(static_cast<uint32_t>(shape_.blocks), args.n_draws);
  const auto* const kernel = reinterpret_cast<const void*>(instance.step);
  BERTADAM_RETURN_IF_ERROR(
      cudaLaunchKernel(kernel, dim3(n_blocks), dim3(kThreads), parameters, ring_bytes(instance, shape_), cuda_stream));
  return 0;
}

bool has_kernels(RuleId rule) { return rule != RuleId::kAmsgrad; }

int ring_shape(int device, RuleId rule, uint32_t types, RingShape* shape) {
  const DeviceScope scope(device);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  return find_ring_shape(device, rule, types, shape);
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
