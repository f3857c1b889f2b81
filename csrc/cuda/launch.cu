// Launches kernels on the stream and device it is given, after bringing the tables to the device that changed or are
// too long for the arguments.
#include "cuda/launch.h"

#include <cstring>

#include "cuda/kernel_launch.cuh"
#include "cuda/runtime.cuh"

namespace bertadam::cuda {

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
  const KernelChoice small = kernel_with<SmallArgs>(rule, types), large = kernel_with<LargeArgs>(rule, types);
  if (shape_.blocks == 0 || types != types_) {
    RingShape shape;  // of both
    for (const KernelChoice* const choice : {&small, &large}) {
      if (const int error = find_ring_shape(device_, *choice, &shape)) return error;
    }
    shape_ = shape;
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

  const StepTable step_table(tables);
  args.groups = nullptr;
  args.grads = nullptr;
  if (step_table.size > kLargeTableBytes) {
    unsigned char* host = nullptr;
    const unsigned char* on_device = nullptr;
    if (const int error = step_table_->begin(step_table.size, &host)) return error;
    step_table.write(host);
    if (const int error = step_table_->copy(cuda_stream, &on_device)) return error;
    step_table.point(args, on_device);
    ++n_copies_;
  }

  const uint32_t n_blocks = blocks > 0 ? static_cast<uint32_t>(blocks) : blocks_of(shape_, args);
  return args.groups == nullptr && step_table.size > kSmallTableBytes
             ? launch_step<LargeArgs>(large, shape_, args, step_table, n_blocks, cuda_stream)
             : launch_step<SmallArgs>(small, shape_, args, step_table, n_blocks, cuda_stream);
}

int ring_shape(int device, RuleId rule, uint32_t types, RingShape* shape) {
  const DeviceScope scope(device);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  return find_ring_shape(device, kernel_with<LargeArgs>(rule, types), shape);
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
