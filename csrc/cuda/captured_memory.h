// Memory for a launch that becomes part of a CUDA graph: tables that no later step rewrites, scratch that no other
// launch uses. Plain C++: no torch, no CUDA types.
#pragma once

#include <cstddef>
#include <vector>

namespace bertadam::cuda {

class CapturedMemory {
 public:
  explicit CapturedMemory(int device) : device_(device) {}
  // Of graphs that refer to this memory none may be replayed any more.
  ~CapturedMemory();
  CapturedMemory(const CapturedMemory&) = delete;
  CapturedMemory& operator=(const CapturedMemory&) = delete;

  // Each may be called while a stream captures, is no part of what it captures, and is done on return. Return a
  // cudaError_t value, 0 for success.
  int add_zeros(size_t n_bytes, unsigned char** memory);
  int add_copy(const void* data, size_t n_bytes, const unsigned char** memory);

  int device() const { return device_; }

 private:
  const int device_;
  std::vector<void*> memory_;
};

}  // namespace bertadam::cuda
