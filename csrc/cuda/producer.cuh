// The producer: one warp that draws from the list, has the gradients copied into the ring, and tells the other warps
// what they need to know of each part.
//
// Why a step always ends, with any number of resident blocks. Norms that lead the list are drawn apart, by warps that
// wait for nothing until there are none left. All other draws are handed out in list order. Let T be the first tensor
// without a coefficient. Norm warps and copies wait for no update, so whatever was drawn of T's norms is summed. If
// some norm of T is still to be drawn and does not lead, nobody has drawn anything that is listed behind it. A block
// that draws no more has a full ring whose oldest draw waits for a coefficient that does not come; before long it
// helps: it draws on, adds up norms without keeping the gradients, and postpones the updates, until there are updates
// alone. So all of T's norms get drawn. When the list is at its end, the blocks take up what was postponed; by then no
// coefficient is missing for long. With a trust ratio it is not the producer that helps: see applier.cuh.
#pragma once

#include "cuda/norms.cuh"
#include "cuda/ring.cuh"

namespace bertadam::cuda {

template <class Rule, class Types>
class Producer {
 public:
  __device__ explicit Producer(const Block& block)
      : block_(block),
        tables_(block.tables),
        args_(block.tables.args),
        trees_(block),
        leading_drawn_(args_.n_leading == 0) {}

  // One loop for what is listed, what was postponed and the end, so that waiting, helping and filling are compiled
  // once.
  __device__ void run(double* scratch) {
    scratch_ = scratch;
    bool listed = true, postponed = true;      // whether there may be draws that are
    bool all_applied = !Rule::kHasTrustRatio;  // until then an applier may still postpone
#pragma unroll 1
    for (uint32_t n_ended = 0; n_ended < block_.n_slots;) {
      wait_for_slot();
      uint32_t first = 0, n = 0, kinds = kUpdate;
      if (listed) {
        const uint32_t n_free = free_slots();
        first = draw_tickets(n_free);
        n = first < args_.n_draws ? min(n_free, args_.n_draws - first) : 0u;
        kinds |= kNorm | kSurvey;
        listed = n == n_free;
        prefetch_items(first + gridDim.x);
      } else if (postponed) {
        n = resumes(first) ? 1 : 0;
        postponed = n > 0;
        if (!postponed && !all_applied) {
          wait_for_all_slots();
          postponed = all_applied = true;
        }
      } else {
        end();
        ++n_ended;
      }
      if (n > 0) fill(first, n, kinds);
    }
  }

 private:
  static constexpr uint32_t kMostDraws = 32 / kItemsPerDraw;  // a lane for each of their parts

  // ------------------------------------------------------------------ slots

  __device__ void wait_for_slot() {
    Barrier& empty = block_.ring.empty[next_.slot];
    if constexpr (Rule::kHasTrustRatio) {
      empty.wait(next_.parity ^ 1u);
      return;
    }
    long long since = clock64();
    while (!__all_sync(kFullWarp, empty.is_over(next_.parity ^ 1u))) {
      if (__any_sync(kFullWarp, clock64() - since < kPatienceCycles)) continue;
      if (may_help() && oldest_waits()) {
        help();
        __syncwarp();
      } else {
        since = clock64();
      }
    }
  }

  __device__ void wait_for_all_slots() {
    Cursor cursor = next_;
    for (uint32_t i = 0; i < block_.n_slots; ++i, cursor.advance(1, block_.n_slots)) {
      block_.ring.empty[cursor.slot].wait(cursor.parity ^ 1u);
    }
  }

  // Slots that are free from the next one on, at least 1.
  __device__ uint32_t free_slots() {
    Cursor cursor = next_;
    const auto steps = static_cast<uint32_t>(lane_id());
    const bool looks = steps < min(kMostDraws, block_.n_slots);
    if (looks && steps > 0) cursor.advance(steps, block_.n_slots);
    const bool is_free = steps == 0 || (looks && block_.ring.empty[cursor.slot].is_over(cursor.parity ^ 1u));
    return __ffs(~__ballot_sync(kFullWarp, is_free)) - 1;
  }

  __device__ uint32_t draw_tickets(uint32_t n) {
    uint32_t first = 0;
    if (lane_id() == 0) first = atomicAdd(&args_.workspace.counters->ticket, n);
    return args_.n_leading + __shfl_sync(kFullWarp, first, 0);
  }

  // What this block is likely to draw next: the list is read once, so every item comes from far.
  __device__ void prefetch_items(uint32_t draw) const {
    if (lane_id() == 0 && draw < args_.n_draws) prefetch_to_l2(args_.items + size_t{draw} * kItemsPerDraw);
  }

  // Fills `n` slots with draws [first, first + n) of the list, of which only `kinds` are done. With 132 blocks, about
  // three of four draws of BERT-large are of the tensor that the block's last one was of. To read its tables each time
  // took the producer 96 % of its time behind a long ring, where every access waits for L1, and matrices of 4 M
  // elements waited 9 us for their coefficients: BERT-large took 3171 us clipped per tensor, 3155 now.
  __device__ void fill(uint32_t first, uint32_t n, uint32_t kinds) {
    const auto which = static_cast<uint32_t>(lane_id()) / kItemsPerDraw;
    const int index = lane_id() % kItemsPerDraw;
    const bool fills = which < n;
    Cursor cursor = next_;
    if (fills && which > 0) cursor.advance(which, block_.n_slots);
    const RingMemory& ring = block_.ring;
    const uint32_t slot = cursor.slot;
    const WorkItem item = fills ? tables_.item_of(first + which, index) : WorkItem{kNoTensor, 0};
    const TensorEntry& entry = known_.entry;
    const bool is_new = fills && item.tensor != entry.tensor;
    if (is_new) known_.entry = tables_.entry_of(item.tensor);
    const void* const grad = fills ? entry.template grad_of<Types>(item) : nullptr;
    unsigned char* target = ring.room(slot, index);
    uint32_t element_bytes = 0;  // 0: nothing to copy
    if (grad != nullptr && needs_grads(item.kinds() & kinds)) {
      Types::with_grad(entry.row.types, [&](auto element) { element_bytes = sizeof(element); });
      target += grads_offset<Types>(element_bytes);
    }
    if (Rule::kHasTrustRatio) order_copies();  // after the updates that were written there
    // A whole part's copy need not wait for the tables.
    uint32_t rest = 0;
    if (item.is_whole()) rest = copy(grad, target, element_bytes * kPartElements, ring.full[slot]);
    const Part part = tables_.describe<Rule, Types>(item, entry);
    const uint32_t n_bytes = element_bytes * static_cast<uint32_t>(part.n);
    if (!item.is_whole()) rest = copy(grad, target, n_bytes, ring.full[slot]);
    copy_rest(grad, target, n_bytes, rest);
    Draw& draw = ring.draws[slot];
    if (fills) draw.parts[index] = part;
    if (fills && index == 0) {
      draw.kinds = item.kinds() & kinds;
      draw.index = first + which;
    }
    __syncwarp();
    if (fills && index == 0) ring.full[slot].arrive();
    if (is_new && part.has_grad) known_.scalars = tables_.scalars_of(entry);
    if (fills && part.has_grad) draw.scalars[index] = known_.scalars;
    __syncwarp();
    if (fills && index == 0) {
      ring.ready[slot].see(cursor.parity ^ 1u);
      ring.ready[slot].arrive();
    }
    next_.advance(n, block_.n_slots);
  }

  // An update that is recalled from the states needs none.
  __device__ static bool needs_grads(uint32_t kinds) {
    if constexpr (Rule::kHasTrustRatio) return kinds != kUpdate || Rule::kRecallsGrad;
    return true;
  }

  __device__ void end() {
    if (lane_id() == 0) {
      block_.ring.draws[next_.slot].kinds = 0;
      block_.ring.full[next_.slot].arrive();
    }
    next_.advance(1, block_.n_slots);
  }

  // ----------------------------------------------------------------- copies

  // Has the copy engine take what it can of a part; returns how many bytes it leaves, at the end.
  __device__ static uint32_t copy(const void* grad, void* target, uint32_t n_bytes, Barrier& full) {
#if __CUDA_ARCH__ >= 900
    const uint32_t taken = is_aligned(grad) ? n_bytes & ~15u : 0u;
    if (taken > 0) full.copy_bulk(target, grad, taken, keep_in_l2());
    return n_bytes - taken;
#else
    return n_bytes;
#endif
  }

  // By all lanes, for each lane that has a rest; it is there on return.
  __device__ static void copy_rest(const void* grad, unsigned char* target, uint32_t n_bytes, uint32_t rest) {
    unsigned pending = __ballot_sync(kFullWarp, rest > 0);
    if (pending == 0) return;
    for (; pending != 0; pending &= pending - 1) {
      const int lane = __ffs(pending) - 1;
      const auto* const source = static_cast<const unsigned char*>(shuffled(grad, lane));
      unsigned char* const to = shuffled(target, lane);
      const uint32_t end = __shfl_sync(kFullWarp, n_bytes, lane);
      const uint32_t begin = end - __shfl_sync(kFullWarp, rest, lane);
      const auto address = reinterpret_cast<uintptr_t>(source);
      const uint32_t by_16 = address % 16 == 0 ? max(begin, end & ~15u) : begin;
      const uint32_t by_4 = address % 4 == 0 ? max(by_16, end & ~3u) : by_16;
      for (uint32_t i = begin + 16 * lane_id(); i < by_16; i += 512) copy_16_bytes(to + i, source + i);
      for (uint32_t i = by_16 + 4 * lane_id(); i < by_4; i += 128) copy_4_bytes(to + i, source + i);
      for (uint32_t i = by_4 + 2 * lane_id(); i < end; i += 64) {
        *reinterpret_cast<uint16_t*>(to + i) = *reinterpret_cast<const uint16_t*>(source + i);
      }
    }
    wait_for_copies();
    order_copies();
  }

  // -------------------------------------------------------- help, postponed

  // Asked when patience has run out, which begins anew when the leading norms are found to be drawn: their coefficients
  // need a while. Where updates alone are left, there is nothing to help with, only to put off: when blocks whose
  // patience ended just before the norm of all gradients was there did so, 1,500 updates came one by one at the end,
  // and a step took up to 13 % longer.
  __device__ bool may_help() {
    if (!leading_drawn_) {
      leading_drawn_ = block_.leading_drawn();
      return false;
    }
    return !block_.all_prepared();
  }

  // Whether an update in the slot that is waited for has no coefficient yet.
  __device__ bool oldest_waits() {
    const Draw& draw = block_.ring.draws[next_.slot];
    bool waits = false;
    if (lane_id() < kItemsPerDraw) {
      const Part& part = draw.parts[lane_id()];
      waits = part.has_grad && part.waits &&
              !has_epoch(load_relaxed(&args_.workspace.coefficients[part.coefficient]), block_.epoch);
    }
    return __any_sync(kFullWarp, waits);
  }

  // One draw without the ring: its norms now, its updates later.
  __device__ void help() {
    const uint32_t index = draw_tickets(1);
    if (index >= args_.n_draws) return;
    const uint32_t kinds = tables_.item_of(index, 0).kinds();
    if (lane_id() == 0) {
      const uint32_t at = atomicAdd(&args_.workspace.counters->n_postponed, 1u);
      store_relaxed(&args_.workspace.postponed[at], tag(block_.epoch, index));
    }
    known_ = {};  // else registers are spilled
    if ((kinds & kNorm) != 0) take_distant_norms<Rule, Types>(tables_, trees_, index, scratch_);
  }

  // Takes a postponed draw, if one is left. Whoever postpones one comes here afterwards, so none is forgotten.
  __device__ bool resumes(uint32_t& draw) {
    uint32_t found = args_.n_draws;
    if (lane_id() == 0) {
      Counters& counters = *args_.workspace.counters;
      uint32_t at = load_relaxed(&counters.n_resumed);
      while (at < load_relaxed(&counters.n_postponed)) {
        const uint32_t seen = atomicCAS(&counters.n_resumed, at, at + 1);
        if (seen == at) {
          uint64_t word;
          do {
            word = load_relaxed(&args_.workspace.postponed[at]);
          } while (!has_epoch(word, block_.epoch));
          found = payload(word);
          break;
        }
        at = seen;
      }
    }
    draw = __shfl_sync(kFullWarp, found, 0);
    if (Rule::kHasTrustRatio) __threadfence();  // the states that whoever postponed it has moved
    return draw < args_.n_draws;
  }

  const Block& block_;
  const Tables& tables_;
  const StepArgs& args_;
  NormTrees trees_;
  double* scratch_ = nullptr;
  Cursor next_{0};
  // Of the tensor that this lane met last: see fill. Its step is advanced behind its last draw, so the scalars hold.
  struct {
    TensorEntry entry;
    PartScalars scalars;
  } known_;
  bool leading_drawn_;  // as far as is known
};

}  // namespace bertadam::cuda
