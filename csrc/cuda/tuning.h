// Every number that speed depends on and results do not. Measurements: bench/results.
#pragma once

#include "core/norm_tree.h"

namespace bertadam::cuda {

// One warp sums one leaf of a chunk, so a block has as many warps as a chunk has leaves.
constexpr int kChunkLeaves = 8;
constexpr int kChunkElements = kChunkLeaves * kLeafElements;
constexpr int kThreads = 32 * kChunkLeaves;

// Registers are capped so that this many blocks share an SM: loads in flight hide the latency of the others'
// tickets and reductions.
constexpr int kBlocksPerSm = 3;

// Norm chunks listed ahead of the update that waits for them, per resident block: enough that a coefficient is
// there when its first update is drawn, few enough that the gradient is still in L2.
constexpr int kLookaheadPerBlock = 2;

// Groups and tensor rows travel by value in the kernel's arguments up to this size (the limit is 32,764 bytes
// from CUDA 12.1 on sm_70 and later), through a staging buffer beyond it.
constexpr int kInlineBytes = 32 * 1024 - 512;

}  // namespace bertadam::cuda
