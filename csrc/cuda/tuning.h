// Every number that speed depends on and results do not. Times are of BERT-large's 336 M parameters in fp32 on an H200
// (132 SMs, CUDA 13.0), 2026-11, clip per tensor / no clip; the choice made here takes 2611 / 2243 us.
#pragma once

#include "core/norm_tree.h"

namespace bertadam::cuda {

// One warp sums one leaf of a chunk, so a block has as many warps as a chunk has leaves. With 4 leaves: 2659 / 2233 us;
// with 16: 2903 / 2294 us.
constexpr int kChunkLeaves = 8;
constexpr int kChunkElements = kChunkLeaves * kLeafElements;
constexpr int kThreads = 32 * kChunkLeaves;

// Registers are capped so that this many blocks share an SM: loads in flight hide the latency of the others' tickets
// and reductions. Two blocks with two vectors per thread in flight: 2816 / 2289 us, with four: 2763 / 2233 us.
constexpr int kBlocksPerSm = 3;

// Norm chunks listed ahead of the update that waits for them, per resident block: enough that a coefficient is there
// when its first update is drawn, few enough that the gradient is still in L2. 2 per block: 2659 us.
constexpr int kLookaheadPerBlock = 1;

// Groups and tensor rows travel by value in the kernel's arguments up to this size (the limit is 32,764 bytes from
// CUDA 12.1 on sm_70 and later), through a staging buffer beyond it.
constexpr int kInlineBytes = 32 * 1024 - 512;

}  // namespace bertadam::cuda
