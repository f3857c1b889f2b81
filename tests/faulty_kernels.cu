// One fault for each of compute-sanitizer's tools, in the engine's namespace, so that the same filter picks it: shows
// that a clean report means something. And a kernel without one, which hands values over as the engine does: shows
// whether a report of faults does. Usage: faulty_kernels memcheck|racecheck|initcheck|synccheck|handover
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace bertadam::cuda {

constexpr int kThreads = 64;

__global__ void write_past_the_end(int* out) { out[threadIdx.x + 1] = 1; }

__global__ void read_before_the_barrier(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];  // another warp's
}

__global__ void read_what_nobody_wrote(int* out) { out[threadIdx.x] += 1; }

__global__ void part_of_a_warp_at_a_barrier(int* out) {
  if (threadIdx.x < kThreads - 16) __syncthreads();
  out[threadIdx.x] = 1;
}

// From one warp to another, through a barrier at which one lane arrives for all.
__global__ void hand_over(int* out) {
  __shared__ int values[32];
  __shared__ uint64_t word;
  const auto barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&word));
  if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barrier) : "memory");
  __syncthreads();
  if (threadIdx.x < 32) {
    values[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncwarp();
    if (threadIdx.x == 0)
      asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
    return;
  }
  uint32_t done = 0;
  while (done == 0) {
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(barrier)
                 : "memory");
  }
  out[threadIdx.x % 32] = values[63 - threadIdx.x];
}

}  // namespace bertadam::cuda

int main(int n_arguments, char** arguments) {
  using namespace bertadam::cuda;
  int* out = nullptr;
  if (n_arguments != 2 || cudaMalloc(&out, kThreads * sizeof(int)) != cudaSuccess) return 2;
  const char* const tool = arguments[1];
  if (std::strcmp(tool, "memcheck") == 0) write_past_the_end<<<1, kThreads>>>(out);
  if (std::strcmp(tool, "racecheck") == 0) read_before_the_barrier<<<1, kThreads>>>(out);
  if (std::strcmp(tool, "initcheck") == 0) read_what_nobody_wrote<<<1, kThreads>>>(out);
  if (std::strcmp(tool, "synccheck") == 0) part_of_a_warp_at_a_barrier<<<1, kThreads>>>(out);
  if (std::strcmp(tool, "handover") == 0) hand_over<<<1, kThreads>>>(out);
  cudaDeviceSynchronize();
  return 0;
}
