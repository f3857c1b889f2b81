// Errors and the current device of the CUDA runtime.
#pragma once

namespace bertadam::cuda {

// The runtime remembers a failure until it is read; the caller gets it, nobody else should.
inline int take(cudaError_t error) {
  cudaGetLastError();
  return static_cast<int>(error);
}

#define BERTADAM_RETURN_IF_ERROR(call)              \
  do {                                              \
    const cudaError_t error_ = (call);              \
    if (error_ != cudaSuccess) return take(error_); \
  } while (false)

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

// Lets this thread allocate and free while a stream captures, which is an error otherwise, by default in every thread:
// the graph would not do it again. What is done here need not be done again.
class RelaxedCapture {
 public:
  RelaxedCapture() : error_(cudaThreadExchangeStreamCaptureMode(&mode_)) {}
  ~RelaxedCapture() {
    if (error_ == cudaSuccess) cudaThreadExchangeStreamCaptureMode(&mode_);
  }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;
  cudaError_t error() const { return error_; }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // then the thread's own
  cudaError_t error_;
};

}  // namespace bertadam::cuda
