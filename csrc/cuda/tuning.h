// Every number that speed depends on and results do not.
#pragma once

#include "core/norm_tree.h"

namespace bertadam::cuda {

// A draw fills a slot of the ring: 32 KB of gradients. A part is a leaf.
constexpr int kPartElements = kLeafElements;
constexpr int kItemsPerDraw = 4;
constexpr int kChunkElements = kItemsPerDraw * kPartElements;

constexpr int kUpdateWarps = 8;

// Vectors of four elements that a lane loads of each array before it works on the previous ones: enough loads in flight
// without a spill.
constexpr int kVectors = 4;

// The norm warps sit on other schedulers than the producer (warp index mod 4), since converting to double is what
// bounds them. The slots are a multiple of them: a warp then sees every phase of its slots' barriers.
constexpr int kNormWarps = 3;

constexpr int kProducerWarp = kUpdateWarps;
constexpr int kFirstNormWarp = kProducerWarp + 1;
constexpr int kThreads = 32 * (kFirstNormWarp + kNormWarps);

// A block of the kernel without norms takes a draw in one go.
constexpr int kPlainThreads = kChunkElements / (4 * kVectors);

// Draws per block that gradients can be kept of between norm and update; the other slots load and drain meanwhile.
constexpr int kSlotsInPassage = 2;

// How long a block whose ring is full waits for the coefficient of its oldest draw before it helps with norms.
constexpr long long kPatienceCycles = 200'000;

// Groups and gradients travel by value in the kernel's arguments up to this size (the limit is 32,764 bytes from CUDA
// 12.1 on sm_70 and later), through a staging buffer beyond it.
constexpr int kInlineBytes = 32 * 1024 - 512;

}  // namespace bertadam::cuda
