// The CPU backend: one function that any number of threads may call at once for the same step.
#pragma once

#include "core/rules.h"
#include "core/step_args.h"

namespace bertadam::cpu {

// One item: 256 KB of each array. With 64 KB, steps on BERT-base's shapes took 3 % longer, with 1 MB the same (2
// threads of a Xeon, 2026-11).
constexpr int kPartLeaves = 64;
constexpr int64_t kPartElements = kPartLeaves * kLeafElements;

// An update asks for its lines of all arrays this far ahead, one line of floats at a time. On BERT-base's shapes it
// takes 72 ms where only the hardware prefetches, 61 with any distance from 0.75 to 2 KB, 63 with 4, 67 with 8. Hints
// for the second cache alone gain half (66), non-temporal ones harm (123), and so does asking past the end of a part:
// 10,000 tensors of 1,000 elements took 21 ms instead of 17 (2 threads of a Xeon with AVX-512, 2026-11).
constexpr int kLineElements = 16;
constexpr int kPrefetchElements = 24 * kLineElements;
// That, or a whole part, which is never, on AMD: there the hardware does better alone, 39.4 ms beside 42.7 (BERT-base,
// no clipping, 2 threads of an EPYC with AVX-512, 2026-11).
int prefetch_elements() noexcept;

using Worker = void (*)(const StepArgs&);

struct IsaLevel {
  const char* name;
  bool supported;  // by this machine
};

// The levels compiled into this binary, the most capable last.
int n_isa_levels();
IsaLevel isa_level(int index);

// The worker of a level; bits do not depend on the level.
Worker worker(RuleId rule, int isa_index);

}  // namespace bertadam::cpu
