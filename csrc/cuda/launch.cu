// Launches kernels on the stream and device it is given, and stages tables that are too long for the arguments.
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

int count_resident_blocks(int device, int* blocks) {
  int multiprocessors = 0;
  int per_multiprocessor = 0;
  BERTADAM_RETURN_IF_ERROR(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  BERTADAM_RETURN_IF_ERROR(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, adam_float32_kernel(), kThreads, 0));
  *blocks = std::max(1, multiprocessors * per_multiprocessor);
  return 0;
}

}  // namespace

// Pinned host memory, its copy on the device, and the moment at which the host may write again.
struct Launcher::Buffer {
  size_t size = 0;
  unsigned char* host = nullptr;
  unsigned char* device = nullptr;
  cudaEvent_t copied = nullptr;

  ~Buffer() {
    // Waits for the device; only reached when a plan is dropped or grows.
    if (device) cudaFree(device);
    if (host) cudaFreeHost(host);
    if (copied) cudaEventDestroy(copied);
  }
};

Launcher::Launcher(int device) : device_(device) {}

Launcher::~Launcher() {
  const DeviceScope scope(device_);
  for (Buffer* buffer : buffers_) delete buffer;
}

int Launcher::stage(const std::vector<unsigned char>& table, void* stream, const unsigned char** on_device) {
  Buffer*& buffer = buffers_[next_buffer_];
  next_buffer_ ^= 1;
  if (buffer != nullptr && buffer->size < table.size()) {
    delete buffer;
    buffer = nullptr;
  }
  if (buffer == nullptr) {
    buffer = new Buffer;
    buffer->size = table.size();
    BERTADAM_RETURN_IF_ERROR(cudaMallocHost(&buffer->host, buffer->size));
    BERTADAM_RETURN_IF_ERROR(cudaMalloc(&buffer->device, buffer->size));
    BERTADAM_RETURN_IF_ERROR(cudaEventCreateWithFlags(&buffer->copied, cudaEventDisableTiming));
  } else {
    // Of the launch before the last: long past unless the host runs two steps ahead of the device.
    BERTADAM_RETURN_IF_ERROR(cudaEventSynchronize(buffer->copied));
  }
  std::memcpy(buffer->host, table.data(), table.size());
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  BERTADAM_RETURN_IF_ERROR(
      cudaMemcpyAsync(buffer->device, buffer->host, table.size(), cudaMemcpyHostToDevice, cuda_stream));
  BERTADAM_RETURN_IF_ERROR(cudaEventRecord(buffer->copied, cuda_stream));
  *on_device = buffer->device;
  return 0;
}

int Launcher::launch_adam_float32(const StepArgs& args, const std::vector<unsigned char>& table, void* stream,
                                  int blocks) {
  const DeviceScope scope(device_);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  if (resident_blocks_ == 0) {
    if (const int error = count_resident_blocks(device_, &resident_blocks_)) return error;
  }
  KernelArgs kernel_args;
  kernel_args.step = args;
  kernel_args.step.groups = nullptr;
  kernel_args.step.rows = nullptr;
  staged_ = table.size() > sizeof(kernel_args.table);
  if (staged_) {
    const unsigned char* on_device = nullptr;
    if (const int error = stage(table, stream, &on_device)) return error;
    kernel_args.step.groups = reinterpret_cast<const GroupScalars*>(on_device);
    kernel_args.step.rows = reinterpret_cast<const TensorRow*>(kernel_args.step.groups + args.n_groups);
  } else {
    std::memcpy(kernel_args.table, table.data(), table.size());
  }
  const uint32_t n_blocks =
      blocks > 0 ? static_cast<uint32_t>(blocks) : std::min(static_cast<uint32_t>(resident_blocks_), args.n_items);
  kernel_args.step.n_workers = n_blocks;
  void* parameters[] = {&kernel_args};
  BERTADAM_RETURN_IF_ERROR(cudaLaunchKernel(reinterpret_cast<const void*>(adam_float32_kernel()), dim3(n_blocks),
                                            dim3(kThreads), parameters, 0, static_cast<cudaStream_t>(stream)));
  return 0;
}

int resident_blocks(int device, int* blocks) {
  const DeviceScope scope(device);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  return count_resident_blocks(device, blocks);
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
