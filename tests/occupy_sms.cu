// A kernel for the tests that holds as many SMs as it has blocks, for a given time: each block takes all shared
// memory of its SM, so nothing else fits there.
#include <cuda_runtime.h>

__global__ void occupy(unsigned long long nanoseconds) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    __nanosleep(1000);
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - start < nanoseconds);
}

extern "C" int occupy_sms(int blocks, unsigned long long nanoseconds, void* stream) {
  int device = 0;
  int bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncSetAttribute(occupy, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  occupy<<<blocks, 32, bytes, static_cast<cudaStream_t>(stream)>>>(nanoseconds);
  return static_cast<int>(cudaGetLastError());
}
