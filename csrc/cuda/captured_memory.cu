// Allocates and fills beside a capture: on a stream of its own, since work on the one that captures would be recorded,
// and every replay would read the host's memory again.
#include "cuda/captured_memory.h"

#include "cuda/runtime.cuh"

namespace bertadam::cuda {
namespace {

// Non-blocking: others order themselves after the default stream, which may not be waited for during a capture.
class SideStream {
 public:
  SideStream() : error_(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)) {}
  ~SideStream() {
    if (error_ == cudaSuccess) cudaStreamDestroy(stream_);
  }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  cudaError_t error() const { return error_; }
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
  cudaError_t error_;
};

// `fill(memory, stream)` returns the error of what it enqueues.
template <class Fill>
int add(int device, size_t n_bytes, std::vector<void*>& owner, Fill fill) {
  const DeviceScope scope(device);
  BERTADAM_RETURN_IF_ERROR(scope.error());
  const RelaxedCapture relaxed;
  BERTADAM_RETURN_IF_ERROR(relaxed.error());
  void* memory = nullptr;
  BERTADAM_RETURN_IF_ERROR(cudaMalloc(&memory, n_bytes));
  owner.push_back(memory);
  const SideStream stream;
  BERTADAM_RETURN_IF_ERROR(stream.error());
  BERTADAM_RETURN_IF_ERROR(fill(memory, stream));
  BERTADAM_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
  return 0;
}

}  // namespace

CapturedMemory::~CapturedMemory() {
  const DeviceScope scope(device_);
  const RelaxedCapture relaxed;  // somebody else may be capturing
  for (void* const memory : memory_) cudaFree(memory);
  cudaGetLastError();  // at the end of the program the driver may be gone
}

int CapturedMemory::add_zeros(size_t n_bytes, unsigned char** memory) {
  return add(device_, n_bytes, memory_, [&](void* added, cudaStream_t stream) {
    *memory = static_cast<unsigned char*>(added);
    return cudaMemsetAsync(added, 0, n_bytes, stream);
  });
}

int CapturedMemory::add_copy(const void* data, size_t n_bytes, const unsigned char** memory) {
  return add(device_, n_bytes, memory_, [&](void* added, cudaStream_t stream) {
    *memory = static_cast<const unsigned char*>(added);
    return cudaMemcpyAsync(added, data, n_bytes, cudaMemcpyHostToDevice, stream);
  });
}

}  // namespace bertadam::cuda
