// A kernel for the tests that holds as many SMs as it has blocks, for a given time: each block takes all shared
// memory of its SM, so nothing else fits there.
#include <cuda_runtime.h>

namespace {

// Block b stays for (b mod n_shares + 1) / n_shares of the time: SMs become free one after the other.
__global__ void occupy(unsigned long long nanoseconds, unsigned n_shares) {
  const unsigned long long own = nanoseconds * (blockIdx.x % n_shares + 1) / n_shares;
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    __nanosleep(1000);
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - start < own);
}

}  // namespace

extern "C" int occupy_sms(int blocks, unsigned long long nanoseconds, unsigned n_shares, void* stream) {
  int device = 0;
  int bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncSetAttribute(occupy, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  occupy<<<blocks, 32, bytes, static_cast<cudaStream_t>(stream)>>>(nanoseconds, n_shares);
  return static_cast<int>(cudaGetLastError());
}
