// Steps of the CUDA engine, its source compiled for the host and run by fibers, against the CPU backend's: the same
// bits must come of both, whatever the order of events. Usage: emulated_steps SEED; prints what differs.
#include "cuda_words.h"

// Shared memory of a block, as engine.cuh declares it.
namespace bertadam::cuda {
alignas(128) thread_local unsigned char memory[256 * 1024];
}

#include <string>
#include <thread>

#include "core/rules.h"
#include "cpu/worker.h"
#include "cuda/engine.cuh"
#include "cuda/ratio_engine.cuh"
#include "emulated_side.h"

namespace bertadam {
namespace {

// How the tensors of a problem are stored, and what a kernel knows of it.
struct Types {
  const char* name;
  RuleId rule;
  std::vector<uint32_t> codes;  // a tensor has one of them
  void (*step)(cuda::LargeArgs);
  uint32_t grad_bytes;
};
template <class Known, class Rule = Adam>
Types types(const char* name, std::vector<uint32_t> codes, RuleId rule = RuleId::kAdam) {
  return {name, rule, std::move(codes), cuda::step_kernel<Rule, Known, cuda::LargeArgs>, Known::kMostGradBytes};
}
template <class Rule, class Known>
Types ratio_types(const char* name, RuleId rule, std::vector<uint32_t> codes) {
  return {name, rule, std::move(codes), cuda::ratio_kernel<Rule, cuda::Wide<Known>, cuda::LargeArgs>, sizeof(float)};
}
std::vector<Types> all_types() {
  std::vector<uint32_t> every;
#define BERTADAM_CODE(kind, Storage, type, Grad) every.push_back(types_code(StorageKind::kind, DType::type));
  BERTADAM_FOR_EACH_TYPE_ROW(BERTADAM_CODE)
#undef BERTADAM_CODE
  return {types<cuda::OneRow<Float32Row>>("float32", {0}),
          types<cuda::AnyRow>("any", every),
          types<cuda::OneRow<TypeRow<WithRemainder, BFloat16>>>(
              "bfloat16 remainder", {types_code(StorageKind::kBFloat16Remainder, DType::kBFloat16)}),
          types<cuda::OneRow<TypeRow<WithMaster<Float16>, Float16>>>(
              "float16 master", {types_code(StorageKind::kFloat16Master, DType::kFloat16)}),
          types<cuda::AnyRow, Amsgrad>("AMSGrad, any", every, RuleId::kAmsgrad),
          ratio_types<Lamb, cuda::OneRow<Float32Row>>("LAMB, float32", RuleId::kLamb, {0}),
          ratio_types<Lamb, cuda::AnyRow>("LAMB, any", RuleId::kLamb, every),
          ratio_types<Lars, cuda::AnyRow>("LARS, any", RuleId::kLars, every)};
}

void run_block(const cuda::LargeArgs& args, void (*kernel)(cuda::LargeArgs), uint32_t index, uint32_t n_blocks,
               uint64_t seed) {
  emulation::Block block(cuda::kThreads, seed, [&args, kernel] { kernel(args); });
  block.at_yields.emplace_back(&cuda::Barrier::copies_arrive);
  block.at_yields.emplace_back(&cuda::LateStores::one_arrives);
  block.run(index, n_blocks);
  cuda::LateStores::all_arrive();
}

// A launch; `in_turn`: a block begins when the one before has ended, as where only one finds room.
void launch(const StepArgs& step, const Types& types, uint32_t n_slots, uint32_t n_blocks, bool in_turn,
            Random& random) {
  const auto args = std::make_unique<cuda::LargeArgs>();
  args->step = step;
  args->n_slots = n_slots;
  std::vector<std::thread> blocks;
  for (uint32_t i = 0; i < n_blocks; ++i) {
    blocks.emplace_back(run_block, std::cref(*args), types.step, i, n_blocks, random());
    if (in_turn) blocks.back().join();
  }
  for (std::thread& block : blocks) {
    if (block.joinable()) block.join();
  }
}

bool same_bits(const void* a, const void* b, size_t bytes) { return std::memcmp(a, b, bytes) == 0; }
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size() * sizeof(T));
}

struct Problem {
  Random random;
  const Types types;
  const Modes& mode;
  std::vector<int64_t> sizes;
  std::vector<uint32_t> codes, group_of;
  std::vector<GroupScalars> groups;
  float lr_float32 = 0.0f;  // of the first group, and of the second one, for a step that reads them
  double lr_float64 = 0.0;
  std::vector<double> multipliers{0.0, 0.5, 1.0, 0.25};
  std::vector<BiasCorrection> corrections{{10.0, 1000.0}, {5.3, 500.0}, {3.7, 333.0}};
  Side gpu, cpu;
  uint32_t n_slots, n_blocks;
  bool in_turn;

  Problem(uint64_t seed, const Types& types, const Modes& mode) : random(seed), types(types), mode(mode) {
    const int64_t edges[] = {0, 1, 3, 5, 127, 128, 1023, 1024, 1025, 2048, 3000, 4095, 4096, 4097, 8192, 9000};
    for (uint32_t i = 0, n = 3 + below(random, 12); i < n; ++i) sizes.push_back(edges[below(random, 16)]);
    sizes.push_back(20'000 + below(random, 30'000));
    if (below(random, 3) == 0) sizes.insert(sizes.begin(), 140'000 + below(random, 9'000));  // two levels of the tree
    if (below(random, 4) == 0) sizes.insert(sizes.end(), 40, 7);  // two levels over the tensors
    for (size_t i = 0; i < sizes.size(); ++i) {
      codes.push_back(types.codes[below(random, static_cast<uint32_t>(types.codes.size()))]);
      group_of.push_back(below(random, 2));
      gpu.tensors.push_back(tensor(static_cast<size_t>(sizes[i]), codes[i]));
      cpu.tensors.push_back(gpu.tensors.back());
    }
    for (int g = 0; g < 2; ++g) groups.push_back(group(g));
    n_slots = cuda::kNormWarps + below(random, 5);
    n_blocks = 1 + below(random, 4);
    in_turn = below(random, 3) == 0;
    const bool norm = mode.max_grad_norm > 0.0 || mode.skip_nonfinite;
    const bool surveys = rule_info(types.rule).has_trust_ratio;
    const bool wait = mode.clip_by_total_norm || mode.null_step || mode.finds_inf || (surveys && norm);
    const int64_t retained[] = {0, 2, n_slots * n_blocks, 1'000'000};
    cpu.make_plan_of(sizes, group_of, norm, {cpu::kPartElements, 1, wait, PlanOrder::kInTurn, 0, surveys}, random);
    gpu.make_plan_of(
        sizes, group_of, norm,
        {cuda::kPartElements, cuda::kItemsPerDraw, wait, PlanOrder::kRetaining, retained[below(random, 4)], surveys},
        random);
  }

  Tensor tensor(size_t n, uint32_t code) {
    const Sizes bytes(code);
    Tensor t;
    const bool aligned = below(random, 3) != 0;
    t.param = Array(n, bytes.param, aligned || bytes.param == 0);
    fill(t.param, bytes.param, bytes.param == 4, random, 1.0f);
    if (bytes.master > 0) {
      t.master = Array(n, bytes.master, aligned);
      fill(t.master, bytes.master, bytes.master == 4, random, 1.0f);
    }
    for (int k = 0; k < kMaxStates; ++k) {
      t.states[k] = Array(n, 4, below(random, 4) != 0);
      fill(t.states[k], 4, true, random, 0.1f);
    }
    for (size_t i = 0; i < n; ++i) {
      float& v = static_cast<float*>(t.states[1].data())[i];
      v = v * v;
    }
    return t;
  }

  GroupScalars group(int g) {
    GroupScalars s{};
    s.lr = mode.null_step ? 0.0 : g == 0 ? 0.01f : 0.02;  // one is a float
    s.max_grad_norm = mode.max_grad_norm;
    s.beta1 = split(0.9);
    s.one_minus_beta1 = split(1.0 - 0.9);
    s.beta2 = split(0.999);
    s.one_minus_beta2 = split(1.0 - 0.999);
    s.eps = 1e-6f;
    s.weight_decay = g == 0 ? 0.01f : 0.0f;
    s.grad_sign = g == 0 ? 1.0f : -1.0f;
    s.clip_epsilon = g == 0 ? 1e-6 : 0.0;
    s.normalizes = g == 1;
    s.momentum = 0.9f;
    s.trust_coefficient = 0.1f;
    s.adapts = below(random, 4) != 0;
    s.nesterov = g == 1;
    s.needs_norm = mode.max_grad_norm > 0.0 || mode.skip_nonfinite;
    s.multipliers = multipliers.data();
    s.n_multipliers = static_cast<int64_t>(multipliers.size());
    if (g == 1) {
      s.corrections = corrections.data();
      s.n_corrections = static_cast<int64_t>(corrections.size());
    }
    return s;
  }

  std::vector<GroupScalars> with_lr_in_memory() {
    std::vector<GroupScalars> moved = groups;
    lr_float32 = static_cast<float>(groups[0].lr);
    lr_float64 = groups[1].lr;
    moved[0].lr_float32 = &lr_float32;
    moved[1].lr_float64 = &lr_float64;
    moved[0].lr = moved[1].lr = NAN;
    return moved;
  }

  // A step on both sides. What differs, or nothing.
  std::string step(int number) {
    std::vector<Array> grads;
    std::vector<const void*> pointers;
    const bool all_zero = mode.null_step && number == 1;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const size_t bytes = Sizes(codes[i]).grad;
      grads.emplace_back(static_cast<size_t>(sizes[i]), bytes, below(random, 3) != 0);
      if (all_zero) {
        std::memset(grads.back().data(), 0, grads.back().size());
      } else {
        fill(grads.back(), bytes, bytes == 4, random, 0.01f);
      }
      if (!all_zero && sizes[i] > 0 && below(random, 12) == 0) {  // an infinity, by its upper bytes
        auto* const last = static_cast<unsigned char*>(grads.back().data()) + grads.back().size();
        last[-1] = 0x7f;
        last[-2] = 0xf0;
      }
      pointers.push_back(below(random, 8) == 0 ? nullptr : grads.back().data());
    }
    // A scaler in two steps of three; a found_inf is any number, and found by the step itself in some modes.
    const float scale = 1024.0f, founds[] = {0.0f, 0.0f, 0.0f, 2.0f, NAN};
    const float found = founds[below(random, 5)];
    ScalerArgs scaler{};
    if (below(random, 3) != 0) scaler.grad_scale = &scale;
    if (below(random, 3) != 0 && !mode.finds_inf) scaler.found_inf = &found;
    const std::vector<uint64_t> unpostponed = gpu.postponed;
    for (Side* const side : {&cpu, &gpu}) {
      std::vector<TensorRow> rows;
      for (size_t i = 0; i < sizes.size(); ++i) {
        rows.push_back(pointers[i] == nullptr ? TensorRow{} : side->tensors[i].row(codes[i], static_cast<uint32_t>(i)));
      }
      const std::vector<GroupScalars> read = side == &gpu && number == 1 ? with_lr_in_memory() : groups;
      const StepArgs args = side->args(mode, rows, read, pointers, scaler);
      if (side == &cpu) {
        cpu::worker(types.rule, 0)(args);
      } else {
        launch(args, types, n_slots, n_blocks, in_turn, random);
      }
    }
    // Where every norm leads, a draw that is put off helps nobody.
    const bool only_updates = gpu.plan.n_preparing == gpu.plan.n_leading;
    if (only_updates && !same(gpu.postponed, unpostponed)) return "the list of postponed draws";
    return difference(number);
  }

  std::string difference(int number) const {
    for (size_t i = 0; i < sizes.size(); ++i) {
      const Tensor &a = gpu.tensors[i], &b = cpu.tensors[i];
      const std::string which = " of tensor " + std::to_string(i) + ", " + std::to_string(sizes[i]) +
                                " elements, types " + std::to_string(codes[i]);
      if (!(a.param == b.param)) return "the parameter" + which;
      if (!(a.master == b.master)) return "the master" + which;
      for (int k = 0; k < kMaxStates; ++k) {
        if (!(a.states[k] == b.states[k])) return "a state" + which;
      }
      if (!same_bits(&a.step, &b.step, sizeof(float))) return "the step" + which;
    }
    // A NaN has no sign that anybody promised.
    for (size_t i = 0; i < sizes.size(); ++i) {
      const bool same_norm = gpu.norms[i] == cpu.norms[i] || (std::isnan(gpu.norms[i]) && std::isnan(cpu.norms[i]));
      if (!same_norm) return "the norm of tensor " + std::to_string(i);
    }
    for (size_t i = 0; i < sizes.size(); ++i) {
      const float a = gpu.trust_ratios[i], b = cpu.trust_ratios[i];
      if (a != b && !(std::isnan(a) && std::isnan(b))) return "the trust ratio of tensor " + std::to_string(i);
    }
    if (gpu.found_inf != cpu.found_inf) return "what was found infinite";
    if (gpu.n_skipped != cpu.n_skipped) return "the count of skipped updates";
    const Counters& c = gpu.counters;
    if (c.ticket != 0 || c.leading_ticket != 0 || c.workers_done != 0 || c.n_postponed != 0 || c.n_resumed != 0 ||
        c.epoch != static_cast<uint32_t>(number + 1)) {
      return "clean counters";
    }
    if (std::count(gpu.arrivals.begin(), gpu.arrivals.end(), 0u) != static_cast<int64_t>(gpu.arrivals.size())) {
      return "clean arrivals";
    }
    const auto& surveyed = gpu.survey_arrivals;
    if (std::count(surveyed.begin(), surveyed.end(), 0u) != static_cast<int64_t>(surveyed.size())) {
      return "clean arrivals of surveys";
    }
    return "";
  }
};

}  // namespace
}  // namespace bertadam

int main(int n_arguments, char** arguments) {
  using namespace bertadam;
  if (n_arguments != 2) return 2;
  const uint64_t seed = std::strtoull(arguments[1], nullptr, 10);
  for (const Types& types : all_types()) {
    for (const Modes& mode : kModes) {
      Problem problem(seed, types, mode);
      if (std::getenv("EMULATION_VERBOSE"))
        std::fprintf(stderr, "%s, %s: %u blocks, %u slots, in turn %d, %zu tensors\n", types.name, mode.name,
                     problem.n_blocks, problem.n_slots, problem.in_turn, problem.sizes.size());
      for (int step = 0; step < 2; ++step) {
        const std::string what = problem.step(step);
        if (what.empty()) continue;
        std::printf("%s, %s, step %d, seed %s: %s differs\n", types.name, mode.name, step, arguments[1], what.c_str());
        return 1;
      }
    }
  }
  return 0;
}
