// What lets one source serve the host compiler and nvcc, and nothing else.
#pragma once

// Every function of core/ that a hot loop calls is forced inline. On the host this also keeps its body out of
// the symbol table: cpu/worker.cpp is compiled once per instruction set, and a shared inline symbol would let
// the linker hand AVX-512 code to a machine without it.
#if defined(__CUDACC__)
#define BERTADAM_HD __host__ __device__ __forceinline__
#else
#define BERTADAM_HD inline __attribute__((always_inline))
#endif

// In what nvcc compiles for a GPU.
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
#define BERTADAM_FOR_GPU 1
#else
#define BERTADAM_FOR_GPU 0
#endif
