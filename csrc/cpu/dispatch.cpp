// Chooses between the worker's compilations.
#include "cpu/worker.h"

namespace bertadam::cpu {

#define BERTADAM_DECLARE_ISA(name) \
  namespace name {                 \
  Worker worker_of(RuleId rule);   \
  }
BERTADAM_DECLARE_ISA(baseline)
#if defined(BERTADAM_ISA_AVX2)
BERTADAM_DECLARE_ISA(avx2)
#endif
#if defined(BERTADAM_ISA_AVX512)
BERTADAM_DECLARE_ISA(avx512)
#endif

namespace {

struct Compiled {
  IsaLevel level;
  Worker (*worker_of)(RuleId);
};

const Compiled* compiled(int index) {
  static const Compiled levels[] = {
      {{"baseline", true}, baseline::worker_of},
#if defined(BERTADAM_ISA_AVX2)
      {{"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")}, avx2::worker_of},
#endif
#if defined(BERTADAM_ISA_AVX512)
      {{"avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")},
       avx512::worker_of},
#endif
  };
  constexpr int n = sizeof(levels) / sizeof(levels[0]);
  return index < n ? &levels[index] : nullptr;
}

}  // namespace

int n_isa_levels() {
  int n = 0;
  while (compiled(n) != nullptr) ++n;
  return n;
}

IsaLevel isa_level(int index) { return compiled(index)->level; }

int prefetch_elements() noexcept {
#if defined(__x86_64__)
  static const int elements = __builtin_cpu_is("amd") ? kPartElements : kPrefetchElements;
  return elements;
#else
  return kPrefetchElements;
#endif
}

Worker worker(RuleId rule, int isa_index) { return compiled(isa_index)->worker_of(rule); }

}  // namespace bertadam::cpu
