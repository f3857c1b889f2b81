// Every number that speed depends on and results do not. Times are of BERT-large's 336 M parameters in fp32 on an H100
// (80 GB HBM3, 132 SMs, CUDA 13.0), 2026-11, clip per tensor / global / none. The choices made here take 3160 / 3530 /
// 3089 us; figures that name nothing to be read beside are of a time of 3300 / 3677 us.
#pragma once

#include "core/norm_tree.h"

namespace bertadam::cuda {

// A draw fills a slot of the ring: 16 KB of gradients. A part is a leaf. With 32 KB, matrices of 4 M elements wait for
// their coefficients: 3343 / 3620 us.
constexpr int kPartElements = kLeafElements;
constexpr int kItemsPerDraw = 4;
constexpr int kChunkElements = kItemsPerDraw * kPartElements;

// Vectors of four elements that a lane loads of each array before it works on the previous ones, and the warps that do.
// Sixteen warps with two vectors have as many loads in flight, but fewer registers, and spill: 3421 / 3875 us. To have
// L2 fetch a draw's parameters and states ahead of the warps (cp.async.bulk.prefetch.L2) loses: one draw ahead 3431 us
// beside 3258, two 4215.
constexpr int kUpdateWarps = 8;
constexpr int kVectors = 4;

// How many draws the update warps of a block may be apart. Left to themselves they spread over the whole ring, and
// memory that lies side by side is read and written at different times: without norms and with 13 slots, BERT-large
// takes 3176 us without a limit, 3140 with 5, 3128 with 4, 3119 with 3 and 3199 with 2; clipped per tensor 3180, 3180,
// 3178, 3171 and 3245. A single tensor of 1e9 elements, clipped, takes 10,545 us instead of 10,690.
constexpr uint32_t kMostDrift = 3;

// The norm warps sit on other schedulers than the producer (warp index mod 4), since converting to double is what
// bounds them. Two: 3312 / 3898 us. A fourth would leave every thread 128 registers, and spills.
constexpr int kNormWarps = 3;

// How far ahead of a leading norm's draw the list is brought to L2: it is read once, so every item comes from far.
// Nearly three rounds of all warps on an H100, four of the update warps; other distances were not compared.
constexpr uint32_t kItemsAhead = 4096;

// Bytes of gradients that a lane reads for each accumulator of leading norms before it adds them up. With 8 in place of
// 16 BERT-large takes 3272 / 3560 us, beside 3235 / 3550.
constexpr int kNormBytesAhead = 16;

constexpr int kProducerWarp = kUpdateWarps;
constexpr int kFirstNormWarp = kProducerWarp + 1;
constexpr int kThreads = 32 * (kFirstNormWarp + kNormWarps);

// With a trust ratio the update warps survey; of the norm warps one adds up, the others apply.
constexpr int kAppliers = kNormWarps - 1;
// Rows of 128 elements that a survey warp reads while it works on as many. LAMB takes 4467 us with 1, 4518 with 2; with
// 4 there are spills, 5243. Where each row asked for the one four rows on, it waited for what it had just asked for,
// since a warp has six scoreboards: 5017. To have L2 let go of moments first (evict_first) took 1 % more.
constexpr int kRowsAhead = 1;

// Slots per block that load and drain, while the others keep gradients between norm and update. From 1 to 5 of them
// make no difference to BERT-large, 7 take 1 % more.
constexpr int kSlotsInPassage = 2;
// The same while steps with a trust ratio survey. LAMB without clipping, two rows ahead, takes 4018 us with 5 and with
// 4; where only 6 draws of each block are kept, the matrices of 4 M elements do not fit: 4271.
constexpr int kSlotsInSurvey = 5;

// Shared memory is what L1 does not get, and loads in flight need room in L1. 16-bit gradients leave room for 25 slots.
// BERT-large in bfloat16 with remainders, clipped per tensor, takes 3245 us with 25, 3022 with 20, 2994 with 14, 2993
// with 13, 2997 with 11, and 3055 with 10, which keep too little of its matrices (with masters 3350, 3250, 3219, 3216,
// 3234, 3308). Float gradients have room for 13 slots and are best with them: 3234 us, 3262 with 11.
constexpr uint32_t kMostSlots = 14;
// Where the ring takes no norms, nothing is kept for later. BERT-large without clipping takes 3091 us with 3 slots,
// 3110 with 4, 3135 with 6, 3152 with 8, 3187 with 13 before kMostDrift, 3119 with it (bfloat16 with remainders 2880
// with 3, 2898 with 4, 2953 with 8, 2991 with 13); a grid of plain blocks, as many as fit, took 3145. Clipped by the
// global norm it takes 3710 us where the norms pass through a long ring, which keeps 2 % of the gradients, and 3605
// where warps take them from memory before (bfloat16 with masters 3604 and 3450: for 8 KB a producer and eight warps in
// turn need 0.5 us, memory 0.35). Clipped per tensor, the norms that are not kept take 11 us less from memory than
// through the ring, though it is long for the sake of the others; those of a single tensor of 1e9 elements, nearly all
// of them, take 32 us of 10,700 more, LAMB's make no difference.
constexpr uint32_t kSlotsWithoutNorms = 3;
static_assert(kSlotsWithoutNorms >= kNormWarps && kMostSlots >= kNormWarps, "each has a slot of its own");
static_assert(kMostDrift <= kNormWarps, "no ring is shorter");

// How long a block whose ring is full waits for the coefficient of its oldest draw before it helps with norms. With a
// tenth of it, blocks helped that only had to wait, and a step took twice as long.
constexpr long long kPatienceCycles = 200'000;

// Groups and gradients travel by value in the kernel's arguments: in small ones if they fit, else in large ones (the
// limit is 32,764 bytes from CUDA 12.1 on sm_70 and later), beyond that, and in a graph's nodes beyond small ones, in
// memory of their own. A launch takes the host 8.0 us with 32 KB of arguments, 4.9 with 0.5.
constexpr int kSmallTableBytes = 4 * 1024 - 512;
constexpr int kLargeTableBytes = 32 * 1024 - 512;

}  // namespace bertadam::cuda
